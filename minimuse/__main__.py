from minimuse.cli import main

raise SystemExit(main())
