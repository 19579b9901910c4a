"""Results for people: charts, the report, comparison, transcripts."""
