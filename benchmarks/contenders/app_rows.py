"""The app's own table, of `starts-transactional`: one row of it is written together with each start."""

CREATE = "CREATE TABLE app_rows (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text NOT NULL)"
INSERT = "INSERT INTO app_rows (note) VALUES ('started')"
