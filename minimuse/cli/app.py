"""`minimuse app`: a page in the browser, for this machine alone unless `--public` is given."""

import argparse
import importlib.util
import logging
import os
import threading
from functools import cache

from minimuse.cli.lessons import require_packages
from minimuse.muse import Muse
from minimuse.runs import parallel


def run_app(args: argparse.Namespace) -> None:
    """Serve the page until the user stops it."""
    require_packages("app", ("gradio",))
    if args.host not in ("127.0.0.1", "localhost", "::1") and not args.public:
        raise ValueError(f"others may reach --host {args.host}, and draw: add --public to allow it")
    # Gradio reads these when it is imported. It then reports nothing and asks no other machine.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    if importlib.util.find_spec("matplotlib"):  # else Gradio would do it in the first drawing
        importlib.import_module("matplotlib.pyplot")
    import gradio as gr

    from minimuse.app.page import CSS, build

    device = parallel.begin(args.device)
    load = cache(lambda name: Muse.load(name, device, args.t5 if name == args.model else None))
    load(args.model).generate("", steps=1)  # the first pass is slow
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    # Gradio's own grey is too pale for small text.
    theme.set(block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300")
    address = {"server_name": args.host, "server_port": args.port, "share": False}
    looks = {"theme": theme, "css": CSS, "footer_links": [], "run_history": False}
    how = {"quiet": True, "prevent_thread_lock": True, "ssr_mode": False, "max_file_size": "20mb"}
    try:
        _, url, _ = build(load, args.model).launch(**address, **looks, **how)
    except OSError:
        where = f"port {args.port} of {args.host}"
        raise ValueError(f"{where} cannot be had, it may be in use: give another --port") from None
    print(f"minimuse: open {url} in a browser; Ctrl-C stops it", flush=True)
    try:
        threading.Event().wait()
    finally:
        # Pages that are still open lose their connection, which the server would log as an error.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
