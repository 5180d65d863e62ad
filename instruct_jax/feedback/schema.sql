-- The store of the labeling page: one SQLite file.  store.py has what is done to it.
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE instructions (version INTEGER PRIMARY KEY, text TEXT NOT NULL, at REAL NOT NULL, by TEXT) STRICT;
CREATE TABLE labelers (
    name TEXT PRIMARY KEY,
    team TEXT NOT NULL CHECK (team IN ('training', 'held-out')),
    admin INTEGER NOT NULL,
    password TEXT,  -- scrypt; NULL until the invitation is accepted
    invitation TEXT UNIQUE,  -- sha256 of the token of the link; NULL once it is used
    invited_until REAL,
    generation INTEGER NOT NULL DEFAULT 0  -- sessions of an older one have ended
) STRICT;
CREATE TABLE attempts (  -- to log in, that did not succeed
    name TEXT NOT NULL, address TEXT NOT NULL, at REAL NOT NULL
) STRICT;
CREATE TABLE tasks (
    position INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL CHECK (kind IN ('rank', 'demonstrate', 'compare')),
    prompt TEXT NOT NULL, completions TEXT NOT NULL, models TEXT NOT NULL, known TEXT, extra TEXT NOT NULL,  -- JSON
    screening INTEGER NOT NULL,
    left_training INTEGER NOT NULL, left_held_out INTEGER NOT NULL,  -- answers that are still wanted of each team
    skips INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX open_training ON tasks (screening DESC, position) WHERE left_training > 0;
CREATE INDEX open_held_out ON tasks (screening DESC, position) WHERE left_held_out > 0;
CREATE TABLE leases (
    task TEXT NOT NULL REFERENCES tasks (id), labeler TEXT NOT NULL REFERENCES labelers (name),
    opened REAL NOT NULL, until REAL NOT NULL, instructions INTEGER NOT NULL REFERENCES instructions (version),
    PRIMARY KEY (task, labeler)
) STRICT, WITHOUT ROWID;
CREATE INDEX leases_of_labeler ON leases (labeler);
CREATE TABLE answers (
    number INTEGER PRIMARY KEY,
    task TEXT NOT NULL REFERENCES tasks (id), labeler TEXT NOT NULL REFERENCES labelers (name),
    form TEXT NOT NULL UNIQUE,  -- the identity of the form that brought it: the same form twice is one answer
    ranks TEXT, likert TEXT NOT NULL, flags TEXT NOT NULL, notes TEXT NOT NULL,  -- JSON, in the order of the sample
    text TEXT, skipped TEXT,
    shown TEXT NOT NULL,  -- JSON, the order in which the labeler saw the completions
    seconds REAL NOT NULL, submitted REAL NOT NULL, instructions INTEGER NOT NULL REFERENCES instructions (version),
    UNIQUE (task, labeler)
) STRICT;
CREATE INDEX answers_of_labeler ON answers (labeler);
