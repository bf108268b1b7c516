"Make the report of a run; the same as `xaimed report`."
import sys; from xaimed.cli import main
if __name__ == "__main__": sys.exit(main(["report", *sys.argv[1:]]))
