"The `farmer` command, also as `python -m farmer`: sets what must be set before torch is loaded, then runs `farmer.cli`."
import os


def main() -> None:
    # Threads that wait should sleep, not spin: spinning made a step seven times slower where other processes used the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from farmer import cli

    cli.main()


if __name__ == "__main__":
    main()
