"""The command that compresses a corpus into a store, and looks after stores."""
