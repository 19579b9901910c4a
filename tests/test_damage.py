"""Some files damaged, of all that ``python -m tests.faults damage`` damages."""

from tests.faults.damage import faults_of, finished


def test_a_damaged_file_is_named_made_again_or_taken_as_edited(tmp_path, tiny_folder):
    run = finished(tmp_path / "runs" / "run", tiny_folder)
    checkpoint = next((tmp_path / "runs" / "checkpoints").glob("*.safetensors")).name
    names = (f"checkpoints/{checkpoint}", "journal/guarded.jsonl", "dataset/train.jsonl")
    count, faults = faults_of(run, tmp_path / "damaged", names, ("truncated", "a bit flipped"))
    assert count == 6 and not faults, "\n".join(faults)
