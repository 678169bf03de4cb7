"""A `python3` as an old image has it: it says that it is 3.9 and runs `-c` and nothing newer."""

OLD_PYTHON = """#!{python} -IS
import collections, platform, sys
OLD = (3, 9, 18, "final", 0)
args = sys.argv[1:]
while args and args[0].startswith("-") and args[0] != "-c":
    if args.pop(0) in ("-V", "--version"):
        print("Python 3.9.18")
        sys.exit(0)
if not args or args[0] != "-c" or len(args) < 2:
    sys.exit("SyntaxError: invalid syntax")
sys.version_info = collections.namedtuple("version_info", "major minor micro releaselevel serial")(*OLD)
sys.version = "3.9.18 (main, Jan  1 2024, 00:00:00) [GCC 12.2.0]"
sys.hexversion = 0x030912F0
platform.python_version = lambda: "3.9.18"
sys.argv = ["-c", *args[2:]]
exec(compile(args[1], "<string>", "exec"), {{"__name__": "__main__"}})
"""
