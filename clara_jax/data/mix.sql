-- The work database of a mix.

-- Numbers for the manifest.
CREATE TABLE IF NOT EXISTS counts(
  source INTEGER, name TEXT, value INTEGER, PRIMARY KEY(source, name)) WITHOUT ROWID;

-- draw decides the side; grp is the first of all passages that are on one side with this
-- one, since each is nearly the same as another or overlaps it; same is an earlier
-- passage that this one is dropped for, a near-duplicate.
CREATE TABLE IF NOT EXISTS passages(
  id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, text TEXT, draw INTEGER, grp INTEGER,
  same INTEGER, side INTEGER);
CREATE INDEX IF NOT EXISTS passages_grp ON passages(grp);

CREATE TABLE IF NOT EXISTS bands(
  band INTEGER, passage INTEGER, PRIMARY KEY(band, passage)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS marks(mark INTEGER, passage INTEGER);

CREATE TABLE IF NOT EXISTS pieces(
  id INTEGER PRIMARY KEY, passage INTEGER, part INTEGER, start INTEGER, stop INTEGER,
  tokens INTEGER);
CREATE UNIQUE INDEX IF NOT EXISTS pieces_passage ON pieces(passage, part);

-- kind is single (questions about one passage), multi (a question with several
-- documents, of which some are marked), paraphrase (a passage in other words) or text (a
-- passage alone); split is the source's.
CREATE TABLE IF NOT EXISTS records(
  id INTEGER PRIMARY KEY, source INTEGER, place TEXT, kind TEXT, split TEXT, side INTEGER,
  dropped TEXT);

-- gold is 2 for the first document that holds the answer, 1 for others.
CREATE TABLE IF NOT EXISTS docs(
  record INTEGER, position INTEGER, passage INTEGER, part INTEGER, gold INTEGER,
  PRIMARY KEY(record, position)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS docs_passage ON docs(passage);

CREATE TABLE IF NOT EXISTS questions(
  id INTEGER PRIMARY KEY, record INTEGER, piece INTEGER, key BLOB NOT NULL UNIQUE,
  question TEXT, target TEXT, gold TEXT);
CREATE INDEX IF NOT EXISTS questions_record ON questions(record);
CREATE INDEX IF NOT EXISTS questions_piece ON questions(piece);

-- The lines of the files that are written.
CREATE TABLE IF NOT EXISTS tasks(
  file INTEGER, place INTEGER, kind INTEGER, ref INTEGER, chunk INTEGER, copy INTEGER,
  source INTEGER, pool INTEGER);

-- The documents of records that are not dropped.
CREATE TEMP VIEW kept AS
  SELECT record, source, place, kind, split, passage, gold, grp, same,
    records.side AS side, passages.side AS passage_side
  FROM records
    JOIN docs ON record = records.id
    JOIN passages ON passages.id = passage
  WHERE dropped IS NULL;

-- Pieces (of a side, or of a source in training) that documents are added from.
CREATE TEMP VIEW pools AS
  SELECT -1 - side AS pool, pieces.id AS piece FROM kept JOIN pieces USING (passage)
  UNION SELECT source, pieces.id FROM kept JOIN pieces USING (passage) WHERE side = 0;

-- The questions of records that are not dropped.
CREATE TEMP VIEW asked AS
  SELECT questions.*, source, kind, side
  FROM questions JOIN records ON records.id = record
  WHERE dropped IS NULL;
