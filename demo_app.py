"""The demo: ``streamlit run demo_app.py`` or ``unlearn demo``. See a model forget."""

import streamlit as st

from demo.choices import KEY, all_choices, runs_here
from demo.text import STYLE, label

# Streamlit's own icon: any other than a file would be fetched from the net.
st.set_page_config(page_title="See a model forget", layout="wide")
st.html(STYLE)
page = st.navigation(
    [
        st.Page("demo/pages/chat.py", title="Chat", icon=":material/forum:", default=True),
        st.Page("demo/pages/results.py", title="How well did it work", icon=":material/monitoring:"),
        st.Page("demo/pages/making.py", title="How it was made", icon=":material/account_tree:"),
        st.Page("demo/pages/start.py", title="Make one", icon=":material/add_circle:"),
    ],
    position="top",
)
choices = all_choices()
with st.sidebar:
    st.selectbox(
        "Adapter",
        list(choices),
        format_func=lambda key: choices[key].name,
        key=KEY,
        bind="query-params",
        help="What the model was made to forget, and which model. Runs in `runs/` are here too.",
    )
    for complaint in runs_here()[1]:
        st.warning(label(complaint), icon=":material/warning:")
page.run()
