"""What the pages of the demo share. A face: no logic of the method lives here."""
