/**
 * The version of an object's tables. It is the number of migrations that have been applied; a database is brought to the
 * newest when the object wakes, by all that are pending, in one transaction.
 *
 *     migrate(storage, ["CREATE TABLE IF NOT EXISTS a (...)", "ALTER TABLE a ...", (sql) => {...}])
 *
 * A migration that a deployment has run is never changed: the next one is added behind it. The first ran before versions
 * were written down, so it must bear running again. A database newer than the code, after a deployment was rolled back,
 * is not touched.
 */

/** What of SQLite the broker uses. */
export type Sql = Pick<SqlStorage, "exec">;

/** What of an object's storage holds tables. */
export interface Database {
  readonly sql: Sql;
  transactionSync<T>(run: () => T): T;
}

/** Statements, or what cannot be said in statements alone. */
export type Migration = string | ((sql: Sql) => void);

/** Throws, and leaves the database as it was, if it is newer than the code or a migration fails. */
export function migrate(database: Database, migrations: readonly Migration[]): void {
  const { sql } = database;
  const version = versionOf(sql);
  const newest = migrations.length;
  if (version > newest)
    throw new Error(`the database has schema version ${version} and this code knows ${newest}: deploy the newer code`);
  if (version === newest) return;
  database.transactionSync(() => {
    for (const migration of migrations.slice(version)) {
      if (typeof migration === "string") sql.exec(migration);
      else migration(sql);
    }
    sql.exec("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY)");
    sql.exec("INSERT INTO schema_version VALUES (?)", newest);
  });
}

function versionOf(sql: Sql): number {
  const isWritten = sql.exec("SELECT 1 FROM sqlite_master WHERE name = 'schema_version'").toArray().length > 0;
  return isWritten ? sql.exec<{ n: number }>("SELECT max(version) AS n FROM schema_version").one().n : 0;
}
