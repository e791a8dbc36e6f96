"""The interactive page, opened in a browser where there is one."""

import html
import json
import re
import shutil
import subprocess

import pytest
import torch
from diffopt_viz import build_graph, group

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
NAME = "<script>alert('x')</script></script><!--"

# Runs in the page, before and after its own script.
BEFORE = """<script>window.problems = [];
window.onerror = (message) => { problems.push(message); };
document.addEventListener("securitypolicyviolation", (e) => problems.push(e.blockedURI));
</script>"""
AFTER = """<script>{
const count = () => shapes().length;
const shapes = () => [...document.querySelectorAll("#world > g")];
const box = (name) => shapes().find((g) => g.dataset.name.includes(name));
const click = (shape) => shape.dispatchEvent(new MouseEvent("click", { bubbles: true }));
const told = {};
told.closed = count();
told.lines = document.querySelectorAll("#world > path").length;
const inside = ({ x, y }, r) => x > r.x + 2 && x < r.x + r.width - 2 && y > r.y + 2
  && y < r.y + r.height - 2;
const boxes = [...document.querySelectorAll("#world rect")].map((rect) => rect.getBBox());
told.crossings = [...document.querySelectorAll("#world > path")].filter((path) =>
  Array.from({ length: 101 }, (_, k) => path.getPointAtLength(k * path.getTotalLength() / 100))
    .some((point) => boxes.some((rect) => inside(point, rect)))).length;
told.labels = shapes().map((g) => g.dataset.name);
click(box("step 0")); told.opened = count();
click(box("sin")); told.closedAgain = count();
click(box(" … ")); told.unfolded = count();
const search = document.getElementById("search");
search.value = "SCRIPT"; search.dispatchEvent(new Event("input"));
told.found = [...document.querySelectorAll(".found")].map((g) => g.dataset.name);
const ways = document.getElementById("ways");
ways.selectedIndex = [...ways.options].findIndex((o) => o.text === "late");
ways.dispatchEvent(new Event("change"));
told.dim = [...document.querySelectorAll("g.dim")].map((g) => g.dataset.name);
const before = document.getElementById("world").getAttribute("transform");
const wheel = new WheelEvent("wheel", { deltaY: 100, clientX: 50, clientY: 90 });
document.getElementById("picture").dispatchEvent(wheel);
told.zoomed = before !== document.getElementById("world").getAttribute("transform");
told.hover = box("step 0").querySelector("title").textContent;
told.problems = problems;
document.body.replaceChildren(JSON.stringify(told));
document.body.id = "told";
}</script>"""


@pytest.fixture
def page():
    w, late = (torch.tensor(1.0, requires_grad=True) for _ in range(2))
    x = w
    for k in range(10):
        with group(f"step {k}"):
            x = (x * 1.5).sin()
    return build_graph((x + w) * late, {NAME: w, "late": late}, gradients=True).to_html()


def test_the_page_asks_for_nothing_from_outside_and_names_are_harmless(page):
    addresses = set(re.findall(r"https?://[^\\s\"'<>]+", page))

    assert {address for address in addresses if "www.w3.org" not in address} == set()
    assert "default-src 'none'" in page
    assert page.count("<script") == 2
    assert "alert('x')</script>" not in page


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_opens_groups_finds_names_and_highlights_ways(page, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(
        page.replace("<header>", BEFORE + "<header>", 1).replace("</html>", AFTER), "utf-8"
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    command = [str(BROWSER), *options, "--dump-dom", file.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
    found = re.search(r'<body id="told">(.*)</body>', dom, re.DOTALL)
    assert found is not None, dom[-1000:]
    told = json.loads(html.unescape(found[1]))

    assert told["problems"] == []
    assert told["closed"] == 8  # w, late, step 0, the fold, step 9, add, mul, output
    assert told["lines"] == 8  # none from a box to itself
    assert told["crossings"] == 0  # not of the line from w to add either
    assert "▸ step 1 … step 8" in told["labels"]
    assert told["opened"] == told["closed"] + 2  # mul, sin and step 1, now the first of those left
    assert told["closedAgain"] == told["closed"]
    assert told["unfolded"] == told["closed"] + 7
    assert told["found"] == [NAME]
    assert sorted(told["dim"]) == sorted([NAME, "add", *(f"▸ step {k}" for k in range(10))])
    assert told["zoomed"]
    assert "2 operations" in told["hover"]
