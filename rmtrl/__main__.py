"""`python -m rmtrl`: the command line, also for `accelerate launch -m rmtrl`."""

from rmtrl.cli import main

main()
