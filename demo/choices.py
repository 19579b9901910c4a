"""Which adapters there are to show: those that the project ships, and the runs in this directory."""

import streamlit as st

from unlearn_mlx.session.catalog import Entry, run_entries, shipped_entries

KEY = "adapter"  # of the chosen one in the session and in the page's address
FIRST = "harry-potter"  # of those that are shipped, by folder


def all_choices() -> dict[str, Entry]:
    """Every adapter there is to show, by key; Harry Potter's is the first."""
    shipped = sorted(shipped_entries(), key=lambda entry: (entry.path.name != FIRST, entry.key))
    entries = [*shipped, *run_entries()]
    return {entry.key: entry for entry in entries if entry.adapter and not entry.error}


def complaints() -> list[str]:
    """What is wrong with the runs that cannot be opened."""
    return [entry.error for entry in run_entries() if entry.error]


def name_in_list(entry: Entry) -> str:
    """What an adapter is called among all others."""
    name = f"{entry.topic_name} · {entry.model_name}"
    return name if entry.is_shipped else f"{name} · {entry.key}"


def chosen() -> Entry:
    """The adapter that is chosen in the sidebar; a page without one ends here."""
    choices = all_choices()
    entry = choices.get(st.session_state.get(KEY) or next(iter(choices), ""))
    if entry is None:
        st.info("There is no adapter yet. Make one on the page “Make one”.")
        st.stop()
    return entry
