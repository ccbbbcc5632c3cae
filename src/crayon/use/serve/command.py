"""The `serve` command: a web page and a JSON API for trained runs, on Ray Serve, until Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import psutil

from crayon.errors import BadInput, RunFailed, one_line
from crayon.fast import ray_start, serve_loopback
from crayon.launch import cluster
from crayon.report.events import Message
from crayon.system.host import is_loopback
from crayon.tasks import jobs

if TYPE_CHECKING:
    from crayon.use.model import Model
    from crayon.use.settings import Context, ServeConfig

NAME = "crayon"
MOST_OPEN = 1024
"""Requests that Serve hands to the replica, which refuses long before (crayon.use.serve.app), and as many that wait;
Serve answers more with a bare 503."""
REQUEST_SECONDS = 60
REPLICA_CHECK_SECONDS = 2.0


def run(settings: ServeConfig, context: Context) -> None:
    """Serve `settings.run`, which must be of the context's job, and `settings.more` until SIGINT or SIGTERM.

    Raises BadInput for runs and settings that can't be used, before anything listens; RunFailed where the server ends
    by itself.
    """
    check(settings)

    from crayon.launch.driver import interrupts
    from crayon.use.serve import guard

    # The terminal is ours; a replica's words stand in Ray's logs.
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    if not cluster.joins():
        os.environ[guard.NAMES] = ",".join(_names(settings))
        os.environ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = (
            f"{guard.__name__}:{guard.in_proxy.__name__}"
        )

    def say(text: str) -> None:
        context.emit(Message(text))

    with interrupts() as stop, contextlib.ExitStack() as ending:
        say("Loading the models.")
        served = _served(settings, context)
        say("Starting Ray Serve.")
        ray = ending.enter_context(cluster.connected(beside="ray.serve", tell=say))
        serve = ending.enter_context(_running(ray, served, settings))
        for line in welcome(settings, served):
            say(line)
        _watch(serve, stop, say)
        say("Ending.")


def check(config: ServeConfig) -> None:
    """Raises BadInput where nothing can listen there."""
    if cluster.joins():
        return  # it is on the cluster's head node that the page will listen
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((config.host, config.port))
    except OSError as error:
        raise BadInput(
            f"Nothing can listen at {config.host} port {config.port} ({error.strerror}); choose another --port or "
            "--host."
        ) from None


def shown_names(addresses: Sequence[str]) -> list[str]:
    """A short and different name for each run, of letters, digits, dots, dashes and underscores.

    >>> shown_names(["runs/first", "s3://bucket/runs/sweep/best", "old/first"])
    ['first', 'sweep-best', 'first-2']
    """
    names: list[str] = []
    for address in addresses:
        parts = [p for p in address.split("/") if p not in ("", ".", "..", "checkpoints")] or ["model"]
        telling = 2 if re.fullmatch(r"best|step-\d+", parts[-1]) else 1
        wanted = re.sub(r"[^\w.-]", "-", "-".join(parts[-telling:]), flags=re.ASCII)
        name, count = wanted, 1
        while name in names:
            count += 1
            name = f"{wanted}-{count}"
        names.append(name)
    return names


def welcome(config: ServeConfig, served: dict[str, Model]) -> list[str]:
    """What the terminal says once the page is there."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    url = f"http://{socket.gethostname() if config.host in ('0.0.0.0', '::') else host}:{config.port}"
    where = " on the cluster's head node" if cluster.joins() else ""
    width = max(map(len, served))
    lines = [f"{url}{where}  (API: {url}/docs)"]
    for name, model in served.items():
        lines.append(f"  {name:{width}}  {model.job}, step {model.step:,}, {model.uri}")
    if not is_loopback(config.host):
        lines.append("There is no password: whoever reaches this address can use these models.")
    return [*lines, "Ctrl-C ends it."]


def _served(config: ServeConfig, context: Context) -> dict[str, Model]:
    """The models by the names that are shown, loaded here to see that they can be: what is wrong with one is then said
    before anything listens."""
    from crayon.use.model import load
    from crayon.use.serve.app import ability

    addresses = [config.run, *config.more]
    found = {}
    for name, address in zip(shown_names(addresses), addresses, strict=True):
        found[name] = load(address, checkpoint=config.checkpoint, device="cpu")
        if len(found) == 1 and found[name].job != context.job:
            job = found[name].job
            raise BadInput(
                f"{address} is a run of {job}; use crayon {job} serve, or name a {context.job} run first."
            )
        ability(found[name])
    return found


@contextlib.contextmanager
def _running(ray: Any, served: dict[str, Model], config: ServeConfig) -> Iterator[Any]:
    """ray.serve, with the page on it until the end of this block."""
    from ray import serve

    from crayon.use.inputs import absolute

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    own = not cluster.joins()
    if serve.status().proxies:
        raise BadInput(
            "Ray Serve runs on this cluster already, with settings of its own; end it there (serve shutdown), or unset "
            "RAY_ADDRESS to serve from this machine."
        )
    gpus = 1 if config.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1 else 0
    if config.device == "cuda" and not gpus:
        raise BadInput("--device cuda: Ray sees no GPU here; use --device cpu or auto.")
    runs = dict(zip(served, map(absolute, (config.run, *config.more)), strict=True))
    wanted = {"checkpoint": config.checkpoint, "device": config.device if gpus else "cpu"}
    limits: dict[str, Any] = {"names": _names(config), "max_mib": config.max_mib}
    known = [jobs.find(model.job) for model in served.values()]

    def build() -> Any:
        """What Serve calls in a replica, a process that has the models and answers for them."""
        if own:
            serve_loopback.listen_on_loopback()
        for job in known:
            jobs.bring(job)
        from crayon.use.model import load
        from crayon.use.serve import app

        return app.build({name: load(run, **wanted) for name, run in runs.items()}, **limits)

    deployment = serve.deployment(
        name=NAME,
        max_ongoing_requests=MOST_OPEN,
        max_queued_requests=MOST_OPEN,
        graceful_shutdown_timeout_s=2,
        graceful_shutdown_wait_loop_s=0.2,
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        logging_config={"enable_access_log": False},
    )(serve.ingress(build)())
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": config.host, "port": config.port, "request_timeout_s": REQUEST_SECONDS},
        )
        try:
            serve.run(deployment.bind(), name=NAME, route_prefix="/")
        except (RuntimeError, TimeoutError) as error:
            why = one_line(_cause(serve) or error, 300)
            raise RunFailed(f"Ray Serve could not start the page ({why}).") from None
        if own:
            _check_loopback(ray.__version__, config.port)
        yield serve
    finally:
        if not own:  # one of our own ends as a whole
            serve.shutdown()


def _cause(serve: Any) -> str:
    """The last line of what a replica says that didn't start, by Serve's status; empty where it says nothing."""
    application = serve.status().applications.get(NAME)
    texts = [d.message for d in application.deployments.values()] if application else []
    found = [
        line
        for text in texts
        for line in text.splitlines()
        if re.match(r"[\w.]+(Error|Input|Exception): ", line)
    ]
    return found[-1] if found else ""


def _check_loopback(version: str, port: int) -> None:
    """Raises RunFailed where a process of our own cluster listens beyond loopback, but at the page's own port."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            for connection in process.net_connections("inet"):
                host, found = connection.laddr
                if connection.status == psutil.CONN_LISTEN and found != port and not is_loopback(host):
                    raise RunFailed(
                        f"Ray Serve {version} listens for other machines at port {found}, so the page isn't served; "
                        f"use Ray {ray_start.TRIED[-1]}, or join a cluster."
                    )


def _watch(serve: Any, stop: threading.Event, say: Callable[[str], None]) -> None:
    """Wait for the end, and tell when the replica is lost; Serve starts another one by itself."""
    before = "RUNNING"
    while not stop.wait(REPLICA_CHECK_SECONDS):
        application = serve.status().applications.get(NAME)
        if application is None:
            raise RunFailed("The page was ended by someone else (serve shutdown).")
        now = application.status.value
        if now != before:
            say("The page is there again." if now == "RUNNING" else f"The page is {now.lower()}.")
        before = now


def _names(config: ServeConfig) -> tuple[str, ...]:
    """Host names by which the page may be asked for, beside addresses and localhost."""
    given = [name.strip() for name in config.names.split(",") if name.strip()]
    own = [] if is_loopback(config.host) else [config.host, socket.gethostname(), socket.getfqdn()]
    return tuple({name.lower() for name in given + own})
