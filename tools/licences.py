"""The licence of every package that is installed: ``uv run python -m tools.licences``."""

from importlib.metadata import Distribution, distributions


def licence_of(package: Distribution) -> str:
    """What a package says of its licence, in a few words; empty where it says nothing."""
    facts = package.metadata
    classes = [each for each in facts.get_all("Classifier") or [] if each.startswith("License ::")]
    told = [each.split(" :: ")[-1] for each in classes] + (facts.get_all("License") or [])
    named = (facts.get_all("License-Expression") or []) + told
    return next((each.strip().splitlines()[0] for each in named if each.strip()), "")


def main() -> None:
    """Print them by name."""
    for package in sorted(distributions(), key=lambda each: each.name.casefold()):
        print(f"{package.name:32s} {package.version:16s} {licence_of(package) or 'not said'}")


if __name__ == "__main__":
    main()
