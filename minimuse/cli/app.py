"""`minimuse app`: a page in the browser, for this machine alone unless `--public` is given."""

import argparse
import ipaddress
import os
import threading
from functools import cache

from minimuse.cli.lessons import require_packages
from minimuse.muse import Muse
from minimuse.runs import parallel


def run_app(args: argparse.Namespace) -> None:
    """Serve the page until the user stops it."""
    require_packages("app", ("gradio",))
    check_host(args.host, args.public)
    # Gradio reads these when it is imported. It then reports nothing and asks no other machine.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    import gradio as gr

    from minimuse.app.page import CSS, build

    device = parallel.begin(args.device)
    load = cache(lambda name: Muse.load(name, device, args.t5 if name == args.model else None))
    load(args.model)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    address = {"server_name": args.host, "server_port": args.port, "share": False}
    looks = {"theme": theme, "css": CSS, "footer_links": [], "run_history": False}
    how = {"quiet": True, "prevent_thread_lock": True, "ssr_mode": False, "max_file_size": "20mb"}
    try:
        _, url, _ = build(load, args.model).launch(**address, **looks, **how)
    except OSError:
        where = f"port {args.port} of {args.host}"
        raise ValueError(f"{where} cannot be had, it may be in use: give another --port") from None
    print(f"minimuse: open {url} in a browser; Ctrl-C stops it", flush=True)
    threading.Event().wait()


def check_host(host: str, public: bool) -> None:
    """Raise a ValueError for a host that other machines can reach, unless that is wanted."""
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback and not public:
        raise ValueError(
            f"other machines may reach --host {host}, and everybody who does can draw; "
            "add --public if that is wanted"
        )
