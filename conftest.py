"""For the labs as for the tests: a cell tagged `measured` is executed, and its output ignored."""

from nbval.plugin import IPyNbCell


def pytest_collection_modifyitems(items):
    """Switch the comparison off where the output is a measurement."""
    for item in items:
        if isinstance(item, IPyNbCell) and "measured" in item.cell.metadata.get("tags", []):
            item.options["check"] = False
