import sys

try:
    from distill.cli import main

    code = main()
except KeyboardInterrupt:  # while PyTorch is still being imported
    print("distill: interrupted", file=sys.stderr)
    code = 130
raise SystemExit(code)
