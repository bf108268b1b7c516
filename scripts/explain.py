"Explain the predictions of a run; the same as `xaimed explain`."
import sys; from xaimed.cli import main
if __name__ == "__main__": sys.exit(main(["explain", *sys.argv[1:]]))
