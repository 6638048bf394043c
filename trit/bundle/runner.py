"""The inside of an isolated process: runs counted files one after another and reports what they touched. Never imported by trit.

`trit.bundle.alone` passes this text to `python -I -B -c` with the path of a plan (JSON). Standard library only, Python 3.10 syntax.
Reports are JSON lines on a pipe, sent as things happen: what was reported cannot be taken back by the program that is watched.
"""

import builtins
import copy
import ctypes
import gc
import json
import os
import runpy
import struct
import sys
import time
import traceback
import types

PATH_EVENTS = ("open", "glob.glob", "sqlite3.connect", "os.truncate", "os.rename", "os.remove", "os.link", "os.symlink")
PROCESS_EVENTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
    "ctypes.dlopen",
)
QUIET_SOCKETS = ("socket.__new__", "socket.gethostname")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Landlock: syscall numbers are the same on every architecture; every access to files but executing them is handled.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF, NO_NEW_PRIVILEGES = 444, 445, 446, 38
DECODED = {}  # {bytes that decode: the names they left behind}
READ_FILE, READ_DIR, ALL_ACCESS, FILE_ACCESS = 1 << 2, 1 << 3, (1 << 13) - 2, 1 << 1 | 1 << 2


class Watch:
    """The audit hook. `quiet` holds while the harness itself works."""

    def __init__(self, pipe, refuse_network):
        self.pipe, self.refuse_network = pipe, refuse_network
        self.quiet, self.seen, self.begin = True, set(), 0.0
        self.library = os.path.dirname(os.path.abspath(os.__file__))

    def report(self, **facts):
        os.write(self.pipe, (json.dumps(facts) + "\n").encode())

    def asked_by(self):
        """Who asked for what is going on: "import", or the first code outside the standard library, a package or "the program"."""
        frame = sys._getframe(2)
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return "import"
        while frame:
            name = frame.f_code.co_filename
            if "site-packages" in name:
                return name.split("site-packages", 1)[1].strip(os.sep).split(os.sep)[0]
            if not name.startswith((self.library, "<frozen")):
                break
            frame = frame.f_back
        return "the program"

    def __call__(self, event, args):
        network = event.startswith("socket.") and event not in QUIET_SOCKETS
        if self.quiet or not (network or event in PATH_EVENTS or event in PROCESS_EVENTS):
            return
        if network or event in PROCESS_EVENTS:
            named = args[1:2] if event == "subprocess.Popen" else args if network else args[:1]
            words = [str(value) for value in named if type(value).__name__ != "socket"]
            entry = (event, " ".join(words)[:200], False)
        elif isinstance(args[0], (str, bytes, os.PathLike)):
            writes = event not in ("open", "glob.glob") or event == "open" and bool(args[2] & WRITING)
            path = os.fsdecode(args[0])
            entry = (event, path if event == "glob.glob" else os.path.realpath(path), writes)
        else:
            return
        if entry not in self.seen:
            self.seen.add(entry)
            event, detail, writes = entry
            asked = self.asked_by()
            self.report(event=event, detail=detail, writes=writes, asked=asked, seconds=round(time.perf_counter() - self.begin, 4))
        if self.refuse_network and network:
            raise PermissionError(f"the counted file may not use the network ({event}); remove the access or pass network=True")


def file_wall(readable, writable):
    """Let this process and its children open files below the given paths only (Linux with Landlock). True where it holds."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        kernel = ctypes.CDLL(None, use_errno=True)
        rules = kernel.syscall(CREATE_RULESET, struct.pack("=Q", ALL_ACCESS), 8, 0)
        if rules < 0:
            return False
        for paths, access in ((readable, READ_FILE | READ_DIR), (writable, ALL_ACCESS)):
            for path in filter(os.path.exists, paths):
                place = os.open(path, os.O_PATH)
                allowed = access if os.path.isdir(path) else access & FILE_ACCESS
                failed = kernel.syscall(ADD_RULE, rules, 1, struct.pack("=Qi", allowed, place), 0)
                os.close(place)
                if failed:
                    return False
        return not kernel.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) and not kernel.syscall(RESTRICT_SELF, rules, 0)
    except (AttributeError, OSError):
        return False


def run_decoded(watch, size):
    """Run a counted file whose first `size` bytes only decode its program: they run once for all jobs of the same bytes, and what they left
    behind is given to the rest of the file each time, in a module like that of `runpy.run_path`."""
    watch.quiet = True
    with open("train_gpt.py", "rb") as file:
        decoder, rest = file.read(size), file.read()
    if decoder not in DECODED:
        left = {}
        exec(compile(decoder, "train_gpt.py", "exec"), left)
        del left["__builtins__"]
        DECODED[decoder] = left | {"T": 0}  # the rest begins with T=0: the decoder's tables need no copies
    module = types.ModuleType("__main__")
    vars(module).update(copy.deepcopy({name: value for name, value in DECODED[decoder].items() if name != "math"}))
    vars(module).update(math=DECODED[decoder]["math"], __file__="train_gpt.py", __cached__=None, __package__="", __builtins__=builtins)
    outer, sys.modules["__main__"] = sys.modules["__main__"], module
    watch.quiet = False
    try:
        exec(compile(rest, "train_gpt.py", "exec"), vars(module))
    finally:
        sys.modules["__main__"] = outer


def run_job(watch, number, job):
    """Run one counted file as `__main__` in its folder, output to the job's files; reports the exit status."""
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environ"])
    sys.argv = ["train_gpt.py", *job["arguments"]]
    for stream, path in ((1, job["output"]), (2, job["errors"])):
        place = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(place, stream)
        os.close(place)
    code, watch.seen, watch.begin = 0, set(), time.perf_counter()
    watch.report(start=number)
    watch.quiet = False
    try:
        if job["decoder_bytes"]:
            run_decoded(watch, job["decoder_bytes"])
        else:
            runpy.run_path("train_gpt.py", run_name="__main__")
    except SystemExit as request:
        code = request.code if isinstance(request.code, int) else int(request.code is not None)
        if code and request.code is not code:
            print(request.code, file=sys.stderr)
    except BaseException:
        code = 1
        traceback.print_exc()
    watch.quiet = True
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(job["folder"] + os.sep):
            del sys.modules[name]
    watch.report(end=number, code=code, seconds=time.perf_counter() - watch.begin)
    gc.collect()
    gc.freeze()  # the libraries stay: later collections look at later objects only


def main():
    """Set up the walls and the hook, run every job of the plan, leave without running anything the programs left for the exit."""
    with open(sys.argv[1]) as file:
        plan = json.load(file)
    os.set_inheritable(plan["pipe"], False)
    watch = Watch(plan["pipe"], plan["refuse_network"])
    python = sorted({sys.prefix, sys.base_prefix, sys.exec_prefix, *map(os.path.abspath, filter(None, sys.path))})
    walled = file_wall([*plan["readable"], *python], plan["writable"])
    watch.report(python=python, walled=walled)
    sys.addaudithook(watch)
    for number, job in enumerate(plan["jobs"]):
        run_job(watch, number, job)
    torch, mlx = sys.modules.get("torch"), sys.modules.get("mlx.core")
    cuda, device = getattr(torch, "cuda", None), "cpu"
    if cuda and cuda.is_available() and cuda.is_initialized():
        device = f"cuda ({cuda.get_device_name()})"
    elif mlx and mlx.default_device() == mlx.Device(mlx.gpu):
        device = "gpu"
    libraries = {"torch": torch, "mlx": mlx}
    watch.report(libraries={name: module.__version__ for name, module in libraries.items() if module}, device=device)
    os._exit(0)


if __name__ == "__main__":
    main()
