"""Jobs' logs: lines as they come, pieces on demand, bounded however much is printed."""

from pathlib import Path

from engine.jobs import logs as job_logs
from engine.jobs.logs import LogFollower, append, last_line, read_piece


def test_only_complete_lines_come_until_the_job_ends(tmp_path: Path):
    path = tmp_path / "log.txt"
    follower = LogFollower(path)
    assert follower.new_lines() == ()
    append(path, "one\ntw")
    assert follower.new_lines() == ("one",)
    append(path, "o\nthree")
    assert follower.new_lines() == ("two",)
    assert follower.new_lines(ended=True) == ("three",)


def test_a_progress_bar_is_shown_in_its_last_state(tmp_path: Path):
    path = tmp_path / "log.txt"
    follower = LogFollower(path)
    append(path, "10 %\r50 %\r100 %\nDOS line\r\n")
    assert follower.new_lines() == ("100 %", "DOS line")


def test_a_burst_shows_its_newest_part(tmp_path: Path):
    path = tmp_path / "log.txt"
    follower = LogFollower(path)
    append(path, "".join(f"line {number:05}\n" for number in range(20_000)))
    lines = follower.new_lines()
    assert lines[-1] == "line 19999"
    assert sum(len(line) + 1 for line in lines) <= job_logs.PIECE_BYTES


def test_a_log_without_end_keeps_its_head_and_stays_bounded(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(job_logs, "LARGEST_LOG", 100_000)
    monkeypatch.setattr(job_logs, "KEPT_HEAD", 50_000)
    path = tmp_path / "log.txt"
    follower = LogFollower(path)
    append(path, "the beginning\n")
    with path.open("ab") as worker:
        for number in range(3000):
            worker.write(f"{number:05} {'x' * 100}\n".encode())
            worker.flush()
            follower.new_lines()
    assert path.stat().st_size < 110_000
    assert path.read_text().startswith("the beginning\n")
    assert "log cut here" in path.read_text()
    assert last_line(path).startswith("02999 ")


def test_pieces_join_to_the_whole_file_whatever_they_cut_through(tmp_path: Path):
    path = tmp_path / "log.txt"
    text = "aé漢🙂" * 40_000
    append(path, text)
    pieces, offset = [], 0
    while (piece := read_piece(path, offset)).text:
        assert len(piece.text.encode()) <= job_logs.PIECE_BYTES
        pieces.append(piece.text)
        offset = piece.next_offset
    assert "".join(pieces) == text


def test_a_log_that_is_not_there_is_empty(tmp_path: Path):
    assert read_piece(tmp_path / "none", 7).text == ""
    assert last_line(tmp_path / "none") == ""
