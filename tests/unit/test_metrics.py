"""The sum of several processes' metrics, in Prometheus' text form."""

from prometheus_client.parser import text_string_to_metric_families

from nixery_snap import __version__, metrics


def samples(content: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(content.decode())
        for sample in family.samples
    }


def test_one_process_is_shown_as_it_is() -> None:
    with metrics.timed("evaluate"):
        pass
    shown = samples(metrics.exposition([metrics.snapshot()]))
    for family in metrics.REGISTRY.collect():
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            if sample.name.startswith("nixery_snap_") and not sample.name.endswith("_created"):
                assert shown[key] == sample.value


def test_several_are_summed_bucket_by_bucket() -> None:
    with metrics.timed("evaluate"):
        pass
    metrics.SUBSTITUTER_FAILURES.labels('a "quoted" \\ one').inc(2)
    one = metrics.snapshot()
    once, thrice = samples(metrics.exposition([one])), samples(metrics.exposition([one, one, one]))
    assert once.keys() == thrice.keys()
    for key, value in once.items():
        is_sum = key[0] not in {
            "nixery_snap_build_info",
            "nixery_snap_substituter_up",
            "process_start_time_seconds",
        }
        assert thrice[key] == (3 * value if is_sum else value), key
    assert thrice["nixery_snap_build_info", (("version", __version__),)] == 1


def test_a_series_that_only_one_of_them_has() -> None:
    def counted(labels: dict[str, str], value: float) -> metrics.Snapshot:
        return [("a", "Text.", "counter", [("a_total", labels, value)])]

    shown = samples(metrics.exposition([counted({"x": "1"}, 1), counted({"x": "2"}, 2), []]))
    assert shown == {("a_total", (("x", "1"),)): 1, ("a_total", (("x", "2"),)): 2}
