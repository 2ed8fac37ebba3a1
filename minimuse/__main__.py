"""`python -m minimuse` is the same as `minimuse`; torchrun needs this form."""

from minimuse.cli import main

raise SystemExit(main())
