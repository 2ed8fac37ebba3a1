"""`minimuse app`: the page in a browser, on this machine alone unless `--public` is given."""

import argparse
import errno
import ipaddress
import os
import socket
import threading

from minimuse.cli.lessons import require_packages
from minimuse.runs import parallel


def run_app(args: argparse.Namespace) -> None:
    """Serve the page until the user stops it."""
    require_packages("app", ("gradio",))
    check_host(args.host, args.public)
    check_port(args.host, args.port)
    # Read when gradio is imported: nothing is reported, and nothing is asked of other machines.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    import gradio as gr

    from minimuse.app.page import CSS, Models, build

    models = Models(parallel.begin(args.device))
    page = build(models, args.model)
    system_fonts = ["system-ui", "sans-serif"]
    theme = gr.themes.Default(font=system_fonts, font_mono=["ui-monospace", "monospace"])
    _, address, _ = page.launch(
        server_name=args.host,
        server_port=args.port,
        theme=theme,
        css=CSS,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        max_file_size="20mb",
    )
    print(f"minimuse: open {address} in a browser; Ctrl-C stops it", flush=True)
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)


def check_host(host: str, public: bool) -> None:
    """Raise a ValueError for a host that other machines can reach, unless that is wanted."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and not public:
        raise ValueError(
            f"other machines can reach --host {host}, and whoever does can draw: "
            "add --public if they may, or leave --host out"
        )


def check_port(host: str, port: int) -> None:
    """Raise an OSError if the page cannot listen at this port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            what = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had ({error})"
            raise ValueError(f"port {port} of {host} {what}: give another --port") from None
