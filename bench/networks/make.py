"""Have the peers quantize the networks; what they made is kept, and used again where it was asked for the same.

Run in edgec's environment: python make.py [--only CONTESTANT ...] [--networks NETWORK ...] [--again]
"""

import argparse
import json

import paired
from contestants import CONTESTANTS, NETWORKS, Contestant
from sources import WORK

THREADS = 2


def make(contestant: Contestant, network: str) -> None:
    """Run a contestant in its environment; its report gains what its process took."""
    out = WORK / "out" / network / contestant.name
    wanted = {
        "network": network,
        "source": str(WORK / "float" / f"{network}.onnx"),
        "calibration": str(WORK / "data" / f"{network}.calibration.npz"),
        "out": str(out),
        "options": contestant.options,
    }
    path = out.parent / f"{contestant.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted, indent=1) + "\n")
    command = [str(WORK / contestant.environment / "bin/python"), str(contestant.script), str(path)]
    process = paired.run(command, OMP_NUM_THREADS=str(THREADS))
    report = json.loads((out / "made.json").read_text())
    report |= {"process_s": process.seconds, "peak_bytes": process.peak_bytes}
    (out / "made.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"{network} {contestant.name}: {process.seconds:.0f} s, {process.peak_bytes / 1e6:.0f} MB", flush=True)


def is_made(contestant: Contestant, network: str) -> bool:
    path = WORK / "out" / network / contestant.name / "made.json"
    return path.exists() and json.loads(path.read_text())["job"]["options"] == contestant.options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [contestant.name for contestant in CONTESTANTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="CONTESTANT")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--again", action="store_true", help="quantize even what is kept")
    arguments = parser.parse_args()
    for network in arguments.networks:
        for contestant in CONTESTANTS:
            wanted = contestant.name in arguments.only and network in contestant.networks
            if wanted and (arguments.again or not is_made(contestant, network)):
                try:
                    make(contestant, network)
                except SystemExit as error:
                    print(f"{network} {contestant.name} failed: {str(error)[-300:]}", flush=True)


if __name__ == "__main__":
    main()
