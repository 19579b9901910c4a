"""The processes that work on runs, for all pages and tabs."""

import streamlit as st

from unlearn_mlx.session.processes import Workers


@st.cache_resource(show_spinner=False)
def workers() -> Workers:
    """The one list of them in this process."""
    return Workers()
