"""The form of a new run: what stays in sight, what it complains of, and what it does not throw away."""

from textual.widgets import Collapsible

from tests.tui_driver import drive, screen_text, text_of, until, write


async def opened(pilot, app):
    await pilot.press("n")
    await until(pilot, lambda: app.screen.query("#topic"))
    await until(pilot, lambda: app.screen.query_one("#model").value is not None)


def test_topic_model_plan_and_buttons_stay_in_sight_while_the_settings_are_open(workplace):
    async def flow(pilot, app):
        await opened(pilot, app)
        await until(pilot, lambda: "takes about" in screen_text(app), 60)
        inside = [line.partition("│")[2].rpartition("│")[0] for line in screen_text(app).splitlines()]
        (first,) = [number for number, line in enumerate(inside) if "A new run" in line]
        (last,) = [number for number, line in enumerate(inside) if "Start (ctrl+s)" in line]
        assert all(line.strip() for line in inside[first : last + 1]), "no blank lines"
        assert screen_text(app).count(" GB") == 2, "what it takes of what there is, once"
        app.screen.query_one(Collapsible).collapsed = False
        await until(pilot, lambda: "seed of every random choice" in screen_text(app))
        for _ in range(30):
            await pilot.press("tab")
        await until(pilot, lambda: "seed of every random choice" not in screen_text(app))
        for seen in ("topic  ", "model  ", "preset  ", "takes about", "minutes", "Start (ctrl+s)"):
            assert seen in screen_text(app)

    drive(flow, (80, 24))


def test_a_complaint_names_the_field_and_goes_there(workplace):
    async def flow(pilot, app):
        await opened(pilot, app)
        await write(pilot, "Cheese")
        app.screen.query_one("#set-batch_size").value = "many"
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "batch size many: " in text_of(app, "#complaint"))
        assert "--" not in text_of(app, "#complaint")
        await until(pilot, lambda: app.focused and app.focused.id == "set-batch_size")
        assert "batch size" in screen_text(app)

    drive(flow, (80, 24))


def test_escape_asks_before_a_filled_form_is_thrown_away(workplace):
    async def flow(pilot, app):
        await opened(pilot, app)
        await pilot.press("escape")
        await until(pilot, lambda: len(app.screen_stack) == 1)
        await opened(pilot, app)
        await write(pilot, "Cheese")
        await pilot.press("escape")
        await until(pilot, lambda: "Leave it?" in screen_text(app))
        await pilot.press("escape")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        assert app.screen.query_one("#topic").value == "Cheese"
        await pilot.press("escape")
        await until(pilot, lambda: "Leave it?" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: len(app.screen_stack) == 1)

    drive(flow)
