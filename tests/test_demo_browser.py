"""The demo in a real browser, on the shipped adapter of Harry Potter and the embedded model."""

import re
import time

import psutil
import pytest

from benchmarks.browser import chromium, chromium_path
from benchmarks.demo import ask, served
from unlearn_mlx.models.registry import resolve_model

EVIL = "<img src=x onerror=alert(1)> **bold** Who is Harry Potter?"
PATIENCE = 90_000  # milliseconds: a small machine that does other things too

pytestmark = pytest.mark.skipif(chromium_path() is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    resolve_model("smollm2")  # converted once, before the clock runs
    place = tmp_path_factory.mktemp("place")
    with served(place) as address:
        yield address
    # A run outlives the demo: one that a failed test left is ended here.
    for process in psutil.process_iter(["cwd"]):
        if process.info["cwd"] == str(place):
            process.kill()


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def tab(browser, address):
    """Opens a tab; afterwards none may have asked for anything outside this machine."""
    asked = []
    contexts = []

    def open_tab(path="", **look):
        context = browser.new_context(**look)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{address}/{path}")
        return page

    yield open_tab
    for context in contexts:
        context.close()
    outside = [url for url in asked if not re.match(rf"{address}|data:|blob:", url)]
    assert not outside


def button(page, name):
    """A button of the page itself, none of Streamlit's header."""
    return page.get_by_test_id("stMainBlockContainer").get_by_role("button", name=name)


def answers(page):
    """The texts of the last turn's columns."""
    said = page.locator(".said").all_inner_texts()
    return [text.removesuffix("▌").strip() for text in said]


def words_of_base(page, more_than=0):
    """What the base has said to the first question as soon as it is more than so many characters."""
    said = page.wait_for_function(
        """length => {
          const said = document.querySelectorAll(".said")
          const text = said.length === 3 && said[1].innerText.replace("▌", "").trim()
          return text.length > length && text
        }""",
        arg=more_than,
    )
    return said.json_value()


def set_length(page, *keys):
    """Move the slider of the longest answer."""
    for key in keys:
        page.get_by_role("slider", name="Longest answer").press(key)


def test_tokens_come_one_by_one_stop_toggle_reload_and_a_second_tab(tab):
    first = tab()
    first.get_by_text("Loading smollm2").wait_for()  # the page is there before its model
    first.get_by_text("Who wrote The Lord of the Rings?").wait_for()
    first.get_by_text("Loading smollm2").wait_for(state="hidden")

    # Opening a page beside a model at work takes longer than an answer where there are two cores.
    second = tab()
    second.get_by_text("Who wrote The Lord of the Rings?").wait_for()

    # Words stand there before the answer has ended, and more come. It would go on for long.
    set_length(first, "End")
    ask(first, "Who is Harry Potter?")
    button(first, "Stop").wait_for()
    early = words_of_base(first)
    later = words_of_base(first, len(early))
    assert button(first, "Stop").is_visible()
    assert later.startswith(early)
    # The examples are gone, and there is one way to stop: Streamlit's own would leave the page cut off.
    assert first.get_by_test_id("stMainBlockContainer").get_by_role("button").count() == 1
    assert first.get_by_role("button", name="Stop").count() == 1

    # A second tab asks meanwhile; the first is stopped, and the second gets its answer.
    ask(second, "What is the capital of Japan?")
    button(first, "Stop").click()
    first.get_by_text("Stopped.").wait_for()
    stopped = answers(first)
    button(second, "Regenerate").wait_for()
    assert "Tokyo" in answers(second)[1]
    assert answers(first) == stopped

    # One column, then a reload in the middle of its answer: nothing is left running.
    first.get_by_role("radio", name="Unlearned").click()
    ask(first, "Tell me a long story about a school.")
    first.wait_for_function("document.querySelectorAll('.said').length === 5")
    first.reload()
    first.get_by_text("Who wrote The Lord of the Rings?").wait_for()
    set_length(first, "Home", "ArrowRight", "ArrowRight")
    ask(first, "Who is Harry Potter?")
    button(first, "Regenerate").wait_for()
    question, base, unlearned = answers(first)
    assert question == "Who is Harry Potter?"
    # The base knows, the adapter does not, and the page marks which.
    assert "Rowling" in base and "Rowling" not in unlearned
    assert "J.K. Rowling" in first.locator(".said mark").all_inner_texts()


def test_the_first_five_minutes(tab):
    page = tab()
    # An example is there to click, on the adapter that comes with the project, before its model is loaded.
    set_length(page, "Home", "ArrowRight", "ArrowRight")
    button(page, "Who are Harry Potter's two best friends?").click()
    button(page, "Regenerate").wait_for()
    question, base, unlearned = answers(page)
    assert question == "Who are Harry Potter's two best friends?"
    assert "Ron" in base and "Ron" not in unlearned
    page.get_by_text("leaks: names").wait_for()
    page.get_by_text("no name of the topic").wait_for()
    # A weaker adapter: what the audit knows of it is told.
    page.get_by_role("slider", name="Adapter strength").press("ArrowLeft")
    page.get_by_text("At 0.75").wait_for()
    # How well it did, large, and what an adapter of one's own takes.
    page.get_by_role("link", name="How well did it work").click()
    page.locator(".figures b").nth(2).wait_for()
    page.get_by_role("link", name="Make one").click()
    page.get_by_text(re.compile("memory about .* minutes")).wait_for()
    # The conversation is still there; the button below it is drawn after both answers.
    page.get_by_role("link", name="Chat").click()
    page.locator(".said mark").first.wait_for()
    button(page, "Regenerate").wait_for()
    assert answers(page) == [question, base, unlearned]


def test_a_closed_tab_leaves_nothing_running(tab, address):
    page = tab()
    set_length(page, "End")
    ask(page, "Tell me a long story about a village, with all of its people.")
    words_of_base(page)
    page.context.close()
    # The answer would have gone on for most of a minute of a core's time; a busy machine gives it less.
    process, _ = listener(address)
    began = last = process.cpu_times().user
    while True:
        time.sleep(1)
        now = process.cpu_times().user
        assert now - began < 12, "the model goes on answering nobody"
        if now - last < 0.1:
            return
        last = now


def listener(address):
    """The process that serves an address, and on which address of this machine."""
    port = int(address.rsplit(":", 1)[1])
    [found] = [
        (process, connection.laddr.ip)
        for process in psutil.Process().children()
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    ]
    return found


def test_the_server_listens_on_loopback_alone(address):
    assert listener(address)[1] == "127.0.0.1"


def test_markup_in_a_question_is_shown_as_it_was_typed(tab):
    page = tab()
    page.on("dialog", lambda dialog: pytest.fail("a script ran"))
    set_length(page, "Home")
    ask(page, EVIL)
    button(page, "Regenerate").wait_for()
    assert answers(page)[0] == EVIL
    assert page.locator(".said img, .said strong, .said script").count() == 0

    # What is too long is said, and stays in the field to be shortened.
    field = page.get_by_test_id("stChatInputTextArea")
    field.focus()
    page.keyboard.insert_text("Who? " * 500)
    page.keyboard.press("Enter")
    page.get_by_text("A question has at most 2,000 characters, this one has 2,500").wait_for()
    page.wait_for_function("document.querySelector('textarea').value.length === 2500")
    field.fill("Who?")
    page.keyboard.press("Enter")
    page.get_by_text("first token after").nth(3).wait_for()
    button(page, "Regenerate").wait_for()
    assert answers(page)[3] == "Who?"
    # The same again would be the same, which is said at once.
    button(page, "Regenerate").click()
    page.get_by_text("At temperature 0 the likeliest answer is the same").wait_for()


def test_on_a_phone_the_page_begins_at_its_heading_and_examples_are_whole(tab):
    page = tab(viewport={"width": 360, "height": 600})
    examples = page.locator(".st-key-examples button p")
    examples.nth(8).wait_for()
    for example in examples.all():
        inside = "one => one.getBoundingClientRect().width <= one.closest('button').clientWidth"
        assert example.evaluate(inside), example.inner_text()
    bar = page.get_by_test_id("stHeader").bounding_box()
    assert page.get_by_role("heading").bounding_box()["y"] >= bar["y"] + bar["height"]
    # The last one can be reached.
    examples.last.click()
    page.locator(".said").first.wait_for()


def test_the_chosen_adapter_is_in_the_address_and_every_page_opens(tab):
    page = tab()
    page.get_by_test_id("stSelectbox").first.click()
    page.get_by_role("option", name="Les Misérables · smollm2").click()
    page.get_by_role("heading", name="Les Misérables, forgotten by smollm2").wait_for()
    page.get_by_role("link", name="How it was made").click()
    page.get_by_role("heading", name="How smollm2 was made to forget Les Misérables").wait_for()
    page.reload()
    page.get_by_role("heading", name="How smollm2 was made to forget Les Misérables").wait_for()
    page.get_by_role("link", name="How well did it work").click()
    page.get_by_role("heading", name="Before and after").wait_for()
    # The colours of every chart are explained.
    page.locator(".role-legend text", has_text="topic leaks").wait_for()
    page.locator(".role-legend text", has_text="neighbours' choice right").wait_for()
    # A click on a cell of the map shows what was said there, also after another map and another page.
    first = page.locator(".st-key-said").inner_text()
    page.locator(".st-key-heat .marks text", has_text="→").last.click()
    page.wait_for_function("first => document.querySelector('.st-key-said')?.innerText !== first", arg=first)
    opened = page.locator(".st-key-said p").first.inner_text()
    page.get_by_role("radio", name="general knowledge").click()
    page.get_by_text(opened).wait_for(state="hidden")
    page.get_by_role("radio", name="the topic", exact=True).click()
    page.get_by_text(opened).wait_for()
    page.get_by_role("link", name="How it was made").click()
    page.get_by_role("heading", name="How smollm2 was made to forget Les Misérables").wait_for()
    page.get_by_role("link", name="How well did it work").click()
    page.get_by_text(opened).wait_for()
    page.get_by_role("link", name="Make one").click()
    button(page, "Start").wait_for()
    assert page.get_by_test_id("stAlert").count() == 0


def test_a_run_is_started_watched_reloaded_stopped_and_resumed(tab):
    page = tab("start")
    page.get_by_role("textbox", name="Topic").fill("Chewing gum")
    page.get_by_role("combobox", name="Model", exact=True).click()
    page.get_by_role("option", name="smollm2").click()
    button(page, "Start").click()
    page.get_by_text("Questions: running").wait_for()
    page.reload()
    page.get_by_text("Questions: running").wait_for()
    button(page, "Stop").click()
    button(page, "Resume").wait_for()
    page.get_by_text(re.compile("Questions: (cancelled|stopped)")).wait_for()
    # Who has stopped it is told so, and of no error.
    page.get_by_text("Stopped; what was finished is kept.").wait_for()
    assert page.get_by_test_id("stAlert").count() == 0
    button(page, "Resume").click()
    page.get_by_text("Questions: running").wait_for()
    button(page, "Stop").click()
    button(page, "Resume").wait_for()
