"""The page and its Markdown: what stands in them, and what must never."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from pfedmma.report import main
from pfedmma.report.script import SCRIPT
from pfedmma.system.errors import UserError
from tests.support.reported import ADAPTERS, PROMPT, SHARED, Page, accuracy, member, origin, round_, summary, write_run

SECTIONS = {"result", "curves", "clients", "accuracy", "communication", "privacy", "time", "setting", "environment"}

DRAWINGS = 12  # HM against bytes, gains; loss, four accuracies; clients; bytes twice, seconds twice


def page_of(*runs: Path, more: tuple[str, ...] = ()) -> Page:
    """The page of these runs, written beside the first."""
    target = runs[0].parent / "page.html"
    main([*map(str, runs), "--html", str(target), *more])
    return Page.from_file(target)


def markdown_of(*runs: Path, more: tuple[str, ...] = ()) -> str:
    target = runs[0].parent / "page.md"
    main([*map(str, runs), "--no-html", "--markdown", str(target), *more])
    return target.read_text(encoding="utf-8")


def test_one_run_is_reported_beside_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = write_run(tmp_path / "run")
    main([str(run)])
    out = capsys.readouterr().out
    assert f"report: {run / 'report.html'}" in out and "90.00" in out
    page = Page.from_file(run / "report.html")
    assert page.sections() == SECTIONS
    for shown in (
        "pfedmma on shapes",
        "90.00",
        "+28.75",
        "61.25",
        "12,672 B",
        "163,200 B",
        "1,024 B",
        "7.76 %",
        "302",
        "optimizer.lr",
        "torch",
    ):
        assert shown in page.text, shown
    assert sum(pair == ("role", "img") for pair in page.attributes) == DRAWINGS


def test_markdown_says_the_same_in_tables(tmp_path: Path):
    text = markdown_of(write_run(tmp_path / "run"))
    for title in ("Setting", "Accuracy", "Clients", "Communication", "Time", "Environment"):
        assert f"## {title}" in text
    for row in (
        "| pfedmma | 90.00 (+28.75) |",
        "| zero-shot | 61.25 |",
        "| all adapters | 163,200 B |",
        "| torch | 2.6 |",
        "| data.shots | 2 |",
    ):
        assert row in text, row
    widths = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert widths and min(widths) >= 3 and not re.search(r"\|\n\n\|", text)


def test_curves_show_every_run_at_its_rounds(tmp_path: Path):
    runs = [write_run(tmp_path / method, summary(method)) for method in ("pfedmma", "local", "fedavg_mma")]
    page = page_of(*runs)
    for method in ("pfedmma", "local", "fedavg_mma"):
        assert f"{method}, round 3: 73" in page.texts and f"{method}, round 1: 2" in page.texts
        assert f"{method}, round 1: 71" not in page.texts  # not evaluated then
    looks = [set(value.split()) for name, value in page.attributes if name == "class" and value.startswith("line s")]
    assert {"s0", "s1", "s2"} <= set().union(*looks)
    strokes = {value for name, value in page.attributes if name == "stroke-dasharray"}
    assert len(strokes) >= 3  # not by colour alone


def test_several_runs_share_a_setting_and_say_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    one, two = summary("pfedmma"), summary("local", up=0)
    two["config"]["optimizer.lr"], two["config"]["method.dim"] = 0.25, 8
    runs = [write_run(tmp_path / "a", one), write_run(tmp_path / "b", two)]
    main([*map(str, runs)])
    assert f"report: {tmp_path / 'report.html'}" in capsys.readouterr().out  # the folder that holds both
    page = Page.from_file(tmp_path / "report.html")
    assert "2 runs on shapes" in page.text and "sgd, lr 0.25, momentum 0.9" in page.text and "nothing travels" in page.text
    text = markdown_of(*runs)
    shared, different = text.split("**What differs**")[0], text.split("**What differs**")[1].split("##")[0]
    assert "| data set | shapes |" in shared and "pfedmma" not in shared.split("## Setting")[1]
    assert "| run | optimizer |" in different and "| local | sgd, lr 0.25, momentum 0.9 |" in different
    assert "| method.dim | 32 | 8 |" in text
    monkeypatch.chdir(tmp_path)
    main([str(runs[0]), str(write_run(tmp_path / "elsewhere" / "c"))])
    assert (tmp_path / "report.html").exists() and "report: report.html" in capsys.readouterr().out


def test_runs_of_other_seeds_have_their_own_reference_and_label(tmp_path: Path):
    runs = [write_run(tmp_path / f"seed{s}", summary(seed=s, zero_shot=accuracy(50.0 + s), accuracy=accuracy(80.0))) for s in (0, 1)]
    text = markdown_of(*runs)
    assert "| pfedmma, seed 0 | 80.00 (+30.00) |" in text and "| pfedmma, seed 1 | 80.00 (+29.00) |" in text
    same = [write_run(tmp_path / name, summary()) for name in ("first", "second")]
    assert "| second | 90.00 (+28.75) |" in markdown_of(*same).replace("*", "")
    assert "| run 2 |" in markdown_of(same[0], same[0])


def test_the_best_of_several_runs_is_marked(tmp_path: Path):
    runs = [
        write_run(tmp_path / name, summary(name, accuracy=accuracy(value), zero_shot=accuracy(61.25, 99.0)))
        for name, value in (("pfedmma", 90.0), ("local", 77.0))
    ]
    text = markdown_of(*runs)
    assert "**90.00 (+28.75)**" in text and "**77.00" not in text and "**61.25" not in text
    assert "**60.00 (-39.00)**" in text  # among the runs, whatever zero-shot has
    assert not [line for line in text.splitlines() if line.startswith("| zero-shot") and "**" in line]  # not even where it ties


def test_names_of_a_run_never_become_markup(tmp_path: Path):
    evil = "<script>alert(1)</script>\"'&\x00\x1b|[/b]"
    rows = [member(i, 60.0, 50.0, [evil, "dog"]) | {"domain": evil} for i in range(3)]
    made = summary(per_client=rows, method=evil, dataset=evil, backbone=evil, protocol=evil)
    made["config"] = {evil: evil, "method.name": evil}
    made["versions"] = {evil: evil}
    made["origin"] = origin(command=evil, revision=evil, finished=evil)
    made["alternatives"] = {evil: 5}
    made["accuracy"] = accuracy(90.0) | {"domains": {evil: 3.0}}
    run = write_run(tmp_path / "run", made)
    page = page_of(run)
    assert page.tags.count("script") == 1 and page.scripts == [SCRIPT] and "b" not in page.tags
    assert page.text.count("alert(1)") > 10  # it is shown, as text
    assert not [value for pair in page.attributes for value in pair if "alert" in value]
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<script") == 1
    text = markdown_of(run)
    assert "<script" not in text and "\x00" not in text
    (row,) = [line for line in text.splitlines() if line.startswith("| data set |")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3  # its bar ends no cell


def test_the_page_loads_nothing(tmp_path: Path):
    run = write_run(tmp_path / "run", summary(dataset="https://example.org/x.png"))
    page = page_of(run)
    loads = [(name, value) for name, value in page.attributes if name in ("src", "href", "srcset", "data", "xlink:href", "action", "style")]
    assert loads and all(name == "href" and value.startswith("#") and value[1:] in page.sections() for name, value in loads)
    assert not {"link", "img", "iframe", "object", "image", "use"} & set(page.tags)
    source = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert (
        "@import" not in source and "url(" not in source and "default-src 'none'" in source and not re.search("fetch|import|http", SCRIPT)
    )
    assert not [value for _, value in page.attributes if "://" in value]


def test_drawings_and_tables_have_captions(tmp_path: Path):
    page = page_of(write_run(tmp_path / "run"))
    assert page.tags.count("table") > 6
    assert page.tags.count("figure") == page.tags.count("figcaption") == DRAWINGS + page.tags.count("table") + 1  # and the large numbers
    assert page.tags.count("h1") == 1 and ("lang", "en") in page.attributes


def test_gains_and_losses_of_clients(tmp_path: Path):
    run = write_run(tmp_path / "run")  # gains 0, -2.5, 10 and 15 points
    text = markdown_of(run)
    assert "| pfedmma | Local | 2 | 1 | 1 | +5.00 | -2.50 | +15.00 |" in text
    worst = text.split("Clients that gain least")[1].splitlines()
    assert worst[4] == "| 1 | 60.00 | 57.50 | -2.50 | 12 | cat, dog |"
    page = page_of(run)
    assert "client 1: Local 57.50, zero-shot 60.00; cat, dog" in page.texts
    classes = [value for name, value in page.attributes if name == "class"]
    assert classes.count("loss") == 2 and classes.count("gain") == 6  # a bar and a row for each


def test_many_clients_are_a_histogram_and_the_page_stays_small(tmp_path: Path):
    rows = [member(i, 60.0, 60.0 + (i % 41 - 10.5), [f"class {k}" for k in range(100)]) for i in range(2000)]
    run = write_run(
        tmp_path / "run", summary(per_client=rows), [round_(n, 20, accuracy(70.0) if n % 5 == 0 else None) for n in range(1, 1001)]
    )
    started = time.process_time()
    page = page_of(run)
    assert time.process_time() - started < 5.0
    assert (tmp_path / "page.html").stat().st_size < 500_000
    assert "and 92 more" in page.text and "class 99" not in page.text
    lose = sum(i % 41 < 11 for i in range(2000))
    assert f"\u25c0 {lose} lose" in page.texts and f"{2000 - lose} gain \u25b6" in page.texts
    bins = [list(map(float, m.groups())) for text in page.texts if (m := re.match(r"(\d+) clients: (\S+) to (\S+) points", text))]
    bins = bins[: len(bins) // 2]  # it stands on the first screen and among the clients
    assert sum(count for count, _, _ in bins) == 2000 and 8 <= len(bins) <= 30
    assert sum(count for count, _, high in bins if high <= 0) == lose  # no bin holds both signs
    assert any("mean of 4 rounds" in text for text in page.texts)


def test_without_zero_shot_of_clients_it_says_so(tmp_path: Path):
    made = summary(per_client=[{k: v for k, v in member(i, None, 50.0 + i).items() if k != "zero_shot"} for i in range(4)])
    for key in ("alternatives", "config", "device", "bytes_down_per_client_round", "precision"):
        del made[key]
    run = write_run(tmp_path / "run", made)
    page = page_of(run)
    assert "not recorded in pfedmma" in page.text and "the sizes of alternatives are not recorded" in page.text
    assert "client 0: Local 50.00, zero-shot -; cat, dog" in page.texts
    text = markdown_of(run)
    assert "| 0 | - | 50.00 | - | 12 | cat, dog |" in text and "| pfedmma | 12,672 B | 12,672 B | 4 |" in text
    assert "| optimizer | not recorded |" in text and "nan" not in text.lower()


def test_a_run_that_was_never_evaluated(tmp_path: Path):
    rows = [member(i, None, None) | {"base": None, "novel": None} for i in range(4)]
    made = summary(accuracy=None, zero_shot=None, per_client=rows)
    run = write_run(tmp_path / "run", made, [round_(n, 4, None) for n in (1, 2)])
    page = page_of(run)
    assert "Nothing was evaluated" in page.text and "no accuracies of single clients" in page.text
    assert "pfedmma, round 2: 1" in page.texts  # the loss is drawn all the same


def test_values_that_are_missing_or_no_numbers(tmp_path: Path):
    rounds = [round_(n, 4, accuracy(70.0, novel=None)) for n in (1, 2, 3)]
    rounds[1]["loss"] = None
    rounds[2]["seconds"] = {"train": 1.0, "total": None}
    made = summary(accuracy=accuracy(80.0, novel=None) | {"hm": None}, zero_shot=accuracy(70.0, novel=None))
    made["per_client"][2]["local"] = made["per_client"][1]["zero_shot"]["local"] = made["throughput"]["seconds_per_round"] = None
    run = write_run(tmp_path / "run", made, rounds)
    page = page_of(run)
    assert "Novel" not in page.text.split("Accuracy in percent")[1].split("What clients send")[0]
    assert "pfedmma, round 1: 2" in page.texts and not any("round 2: nan" in text for text in page.texts)
    values = [value.lower() for name, value in page.attributes if name in ("d", "x", "y", "x1", "x2", "y1", "y2", "width", "height")]
    assert values and not any("nan" in value or "inf" in value for value in values)


@pytest.mark.parametrize("loss", [1.5, 0.0, -2.0, 1e-12, 1e300])
def test_one_round_is_enough(tmp_path: Path, loss: float):
    page = page_of(write_run(tmp_path / "run", summary(rounds=1), [round_(1, 4, accuracy(70.0)) | {"loss": loss}]))
    assert any(text.startswith("pfedmma, round 1: ") for text in page.texts)


def test_domains_and_an_unseen_one(tmp_path: Path):
    extra = {"domains": {"art_painting": 33.25, "photo": None}, "domain_average": 33.25, "unseen": 44.5, "unseen_std": 0.5}
    rows = [member(i, 50.0, 60.0) | {"domain": "art_painting"} for i in range(4)]
    run = write_run(tmp_path / "run", summary(accuracy=accuracy(80.0) | extra, zero_shot=accuracy(70.0) | extra, per_client=rows))
    text = markdown_of(run)
    assert "| art_painting | 33.25 | 33.25 |" in text and "| photo | - | - |" in text and "| average of domains | 33.25 | 33.25 |" in text
    assert "| Unseen domain |" in text and "44.50" in text
    assert "0 art_painting" in page_of(run).texts


def test_a_run_still_going_on_shows_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = write_run(tmp_path / "run")
    (run / "summary.json").unlink()
    (run / "config.yaml").write_text("seed: 3\nmethod: {name: pfedmma}\ndata: {name: shapes, clients: 4}\nfederation: {rounds: 50}\n")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"round": 4, "cli')  # is being written
    main([str(run)])
    assert "3 rounds so far" in capsys.readouterr().out
    page = Page.from_file(run / "report.html")
    assert "3 of 50 so far" in page.text and "pfedmma (so far)" in page.text and "73.00" in page.text and "12,672 B" in page.text


def test_the_page_is_written_where_it_is_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = write_run(tmp_path / "run")
    main([str(run), "--no-html"])
    assert not (run / "report.html").exists() and "report:" not in capsys.readouterr().out
    main([str(run), "--html", str(tmp_path / "there.html")])
    assert not (run / "report.html").exists() and (tmp_path / "there.html").exists()
    with pytest.raises(UserError, match=r"cannot write .*none/x\.html: .*--no-html"):
        main([str(run), "--html", str(tmp_path / "none" / "x.html")])


def test_bytes_on_the_wire_stand_beside_the_ring_model(tmp_path: Path):
    run = write_run(tmp_path / "run")
    measured = '{"name": "pfedmma <S>", "world_size": 3, "rounds": 5, "payload_bytes_per_round": 33792, "ring_bytes_per_rank": 45056.0,'
    measured += '"measured_received_per_rank_per_round": [46000, 46100, 46200.0], "ratio": 1.0232, "more": [],'
    phases = '"phases": {"startup": 9000, "rounds": [1, 2, 3], "evaluation": [600, 700, 800], "checkpoint": 77}}'
    (tmp_path / "wire.json").write_text(f'{{"runs": [{measured}{phases}], "machine": "x"}}')
    text = markdown_of(run, more=("--wire", str(tmp_path / "wire.json")))
    assert "| pfedmma &lt;S> | 3 | 5 | 33,792 B | 45,056 B | 46,100 B | 1.0232 | 9,000 B | 700 B | 77 B |" in text
    assert "46,100 B" in page_of(run, more=("--wire", str(tmp_path / "wire.json"))).text


def test_the_ledger_keeps_its_numbers_apart(tmp_path: Path):
    text = markdown_of(write_run(tmp_path / "run"))
    up = f"{SHARED:,} B"
    assert f"| pfedmma | {up} | {up} | 4 | 50.7 kB | 50.7 kB | 152.1 kB | 152.1 kB |" in text
    assert f"| pfedmma | 2 | 3 | {up} | 38.0 kB | {up} | 38.0 kB | 160 B |" in text
    assert "| pfedmma | 302 | 345 | 0.042 | 0.0417 |" in text
    assert [name for name in ("nothing (local)", "one prompt", "pfedmma", "all adapters") if name in text.split("what travels")[1]] != []
    assert f"| one prompt | {PROMPT:,} B |" in text and f"| all adapters | {ADAPTERS:,} B | 100.00 % |" in text


def test_what_was_lost_and_simulated_has_a_table_where_it_is_known(tmp_path: Path):
    """Round 2 has nobody; of the others, 3 of 4 uploads count in round 1, and none in round 3."""
    plain = write_run(tmp_path / "plain")
    assert "Uploads that did not count" not in markdown_of(plain)
    rounds = [round_(number, clients, None) for number, clients in ((1, 4), (2, 0), (3, 4))]
    for row, failed, late, seconds in zip(rounds, ([2], [], [0, 1]), ([], [], [2, 3]), (2.0, 0.0, 4.0), strict=True):
        row |= {"lost": {"failed": failed, "late": late}, "simulated_seconds": seconds}
        row["comm"] |= {"wasted_bytes": SHARED * len(failed + late)}
    rounds[1]["loss"] = None
    made = summary(lost={"failed": 3, "late": 2}, simulated_seconds=6.0)
    made["comm"] |= {"wasted_bytes": 5 * SHARED, "uplink_bytes": 8 * SHARED}
    run = write_run(tmp_path / "run", made, rounds)
    line = "| 3 of 8 | 2 of 8 | 63.4 kB | 62.5 % | 6.0 s | 2.0 s |"
    assert f"| pfedmma {line}" in markdown_of(run) and "| 2.7 |" in markdown_of(run)  # participants, mean over rounds
    both = markdown_of(plain, run)
    assert both.count("of 8 |") == 2 and line in both
    assert "Uploads that did not count" in page_of(run).text
    (run / "summary.json").unlink()
    assert line in markdown_of(run)
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rounds[:2]))
    assert f"| {SHARED:,} B | {SHARED:,} B | 2 |" in markdown_of(run)  # the last round has nobody to divide by


def test_bytes_add_up_over_rounds_beside_what_alternatives_would_have_moved(tmp_path: Path):
    page = page_of(write_run(tmp_path / "run"))  # four participants, up and down
    for rounds, own, prompt, adapters in ((1, "101 kB", "8.19 kB", "1.31 MB"), (3, "304 kB", "24.6 kB", "3.92 MB")):
        said = {f"pfedmma, round {rounds}: {own}", f"one prompt, round {rounds}: {prompt}", f"all adapters, round {rounds}: {adapters}"}
        assert said <= set(page.texts)


def test_one_rank_has_no_bandwidth(tmp_path: Path):
    assert "| pfedmma | 302 | 345 | - | - |" in markdown_of(write_run(tmp_path / "run", summary(world_size=1)))


def test_long_curves_are_means_of_neighbours(tmp_path: Path):
    losses = [float(n % 2) for n in range(1, 601)]
    rounds = [round_(n, 4, None) | {"loss": loss} for n, loss in enumerate(losses, start=1)]
    page = page_of(write_run(tmp_path / "run", summary(), rounds))
    assert "pfedmma, round 599.5: 0.5" in page.texts and any("mean of 2 rounds" in text for text in page.texts)


def test_seconds_of_a_round_without_the_first(tmp_path: Path):
    rounds = [round_(n, 4, accuracy(70.0)) for n in (1, 2, 3)]
    rounds[0]["seconds"] = dict.fromkeys(rounds[0]["seconds"], 100.0)
    text = markdown_of(write_run(tmp_path / "run", summary(), rounds))
    # 0.4 of training, 0.1 of which waited for images, 0.02 of waiting, 0.01 of exchange, 0.2 of evaluation
    assert "| pfedmma | 630 ms | 300 ms (47.6 %) | 100 ms (15.9 %) | 20 ms (3.2 %) | 10 ms (1.6 %) | 200 ms (31.7 %) | 861 |" in text
    assert "fine-tuning" not in text


def test_fine_tuning_has_seconds_of_its_own(tmp_path: Path):
    """A second after the last of two rounds that count; of another run, which has none, it is nothing."""
    rounds = [round_(n, 4, accuracy(70.0)) for n in (1, 2, 3)]
    other = write_run(tmp_path / "other", summary("local"), rounds)
    rounds[2]["seconds"] |= {"fine_tune": 1.26, "total": 1.89}
    run = write_run(tmp_path / "run", summary(), rounds)
    text = markdown_of(run, other)
    assert "| compute | input | wait | exchange | fine-tuning | evaluate |" in text
    assert (
        "| pfedmma | 1.26 s | 300 ms (23.8 %) | 100 ms (7.9 %) | 20 ms (1.6 %) | 10 ms (0.8 %) | 630 ms (50.0 %) | 200 ms (15.9 %)" in text
    )
    assert "| local | 630 ms | 300 ms (47.6 %) | 100 ms (15.9 %) | 20 ms (3.2 %) | 10 ms (1.6 %) | 0 µs (0.0 %) | 200 ms (31.7 %) |" in text
