from hypothesis import settings

# The first call of a native or autograd function is slow, and that is not a failure.
settings.register_profile("diffopt", deadline=None, derandomize=True)
settings.load_profile("diffopt")
