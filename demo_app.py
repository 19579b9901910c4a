"""The demo: ``streamlit run demo_app.py`` or ``unlearn demo``. See a model forget."""

from pathlib import Path

import streamlit as st

from demo.choices import KEY, all_choices, complaints, name_in_list
from demo.text import STYLE, label
from unlearn_mlx.compute.cpu_setup import prepare_cpu

prepare_cpu()

# A file: without one the icon of the page's link would be taken, and fetched from the net.
ICON = Path(__file__).parent / "demo" / "icon.svg"
st.set_page_config(page_title="See a model forget", page_icon=str(ICON), layout="wide")
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
        format_func=lambda key: name_in_list(choices[key]),
        key=KEY,
        bind="query-params",
        help="What the model was made to forget, and which model. Runs in `runs/` are here too.",
    )
    for complaint in complaints():
        st.warning(label(complaint), icon=":material/warning:")
page.run()
