"The `farmer` command, also as `python -m farmer`: sets what must be set before torch is loaded, then runs `farmer.cli`."
import os
import signal
import sys


def _end(number: int, frame: object) -> None:
    "Of a process with nothing to save: one line, and the exit status of one that the signal ended."
    try:
        if os.environ.get("RANK", "0") == "0":
            os.write(2, f"farmer: {signal.Signals(number).name}: ended; the same command goes on from what is saved\n".encode())
    finally:  # also where nobody reads any more
        os._exit(128 + number)


def main() -> None:
    for name in ("SIGTERM", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_DFL:  # what nohup ignores stays ignored
            signal.signal(getattr(signal, name), _end)
    # Threads that wait should sleep, not spin: spinning made a step seven times slower where other processes used the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from farmer import cli
    except KeyboardInterrupt:
        os.write(2, b"\nfarmer: interrupted; nothing had begun\n")
        sys.exit(130)
    cli.main()


if __name__ == "__main__":
    main()
