"Train the model of a run; the same as `xaimed train`."
import sys; from xaimed.cli import main
if __name__ == "__main__": sys.exit(main(["train", *sys.argv[1:]]))
