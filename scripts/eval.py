"Measure the model of a run; the same as `xaimed eval`."
import sys; from xaimed.cli import main
if __name__ == "__main__": sys.exit(main(["eval", *sys.argv[1:]]))
