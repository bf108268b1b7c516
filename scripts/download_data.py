"Fetch MedMNIST files; the same as `xaimed download-data`."
import sys; from xaimed.cli import main
if __name__ == "__main__": sys.exit(main(["download-data", *sys.argv[1:]]))
