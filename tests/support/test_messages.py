import pytest

from icnets.cli.config_errors import explained
from icnets.support.text import first_line, printable


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("shapes differ\nat x.py:1\nat y.py:2"), "shapes differ"),
        (RuntimeError("\n  out of memory \nat x.py:1"), "out of memory"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_the_first_line_that_says_something(error, line):
    assert first_line(error) == line


def test_names_of_strangers() -> None:
    assert printable("é 1\x1b[31m\n\udc80") == "é 1\\x1b[31m\\n\\udc80"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("Unexpected config: "), "the configuration must be a mapping of options, not empty"),
        (ValueError("Unexpected config: - 1"), "the configuration must be a mapping of options, not - 1"),
        (
            ValueError(
                'Parser key "model.x":\n  Does not validate against any of the Union subtypes\n  Errors:\n'
                "    - Problem with given class_path 'icnets.Mo':\n        module 'icnets' has no attribute 'Mo'\n"
                "    - Expected a <class 'NoneType'>"
            ),
            "model.x: Problem with given class_path 'icnets.Mo': module 'icnets' has no attribute 'Mo'",
        ),
        (
            ValueError(
                "Parser key \"model.x\":\n  Errors:\n    - Problem with given class_path 'icnets.Mo':\n"
                "        'NoneType' object has no attribute 'keys'\n    - Expected a <class 'NoneType'>"
            ),
            "model.x: Problem with given class_path 'icnets.Mo': 'NoneType' object has no attribute 'keys'",
        ),
        (
            ValueError(
                "Does not validate against any of the Union subtypes\nSubtypes: [<class 'a.Logger'>, <class 'bool'>]\n"
                "Errors:\n  - Problem with given class_path 'a.MLFlowLogger':\n      Requirement 'mlflow' not met.\n"
                "  - Expected a <class 'bool'>\nGiven value: Namespace(class_path='a.MLFlowLogger', init_args=None)"
            ),
            "Problem with given class_path 'a.MLFlowLogger': Requirement 'mlflow' not met.",
        ),
        (
            ValueError(
                "Does not validate against any of the Union subtypes\nErrors:\n  - The file store is gone\n"
                "  - Expected a <class 'bool'>\nGiven value: Namespace(class_path='a.MLFlowLogger', init_args=None)"
            ),
            "The file store is gone",
        ),
    ],
)
def test_what_is_wrong_with_a_configuration_in_one_line(error, line):
    assert explained(error) == line
