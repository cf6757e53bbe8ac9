import json

import pytest

from maeclip_jax.bench import probe


def test_figures_of_a_small_problem(tmp_path, capsys):
    pytest.importorskip("sklearn")
    path = tmp_path / "figures.json"
    probe.run(["--rows", "300", "--width", "8", "--classes", "3", "--compare", "--json", str(path)])
    result = json.loads(path.read_text())["figures"]
    assert 26 <= len(result["l2"]) == len(result["iterations"]) == len(result["scikit-learn"]["iterations"]) <= 27
    assert result["top1"] == pytest.approx(result["scikit-learn"]["top1"], abs=2) and 40 < result["top1"] < 100
    seconds = result["seconds"]
    assert result["ratio"]["cpu"] == pytest.approx(
        seconds["scikit-learn: sweep"]["cpu"] / seconds["sweep, programs compiled"]["cpu"]
    )
    assert "sweep, cpu seconds of scikit-learn / ours:" in capsys.readouterr().out


def test_features_are_a_function_of_the_seed():
    one, two = (probe.features(50, 4, 3, seed=0) for _ in range(2))
    assert (one[0] == two[0]).all() and (one[1] == two[1]).all() and one[0].dtype == "float32"
    assert (probe.features(50, 4, 3, seed=1)[0] != one[0]).any()
