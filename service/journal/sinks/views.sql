-- The joined log in SQL, one text for DuckDB and PostgreSQL (a contract, documented in docs/journal.md). It decides as
-- service/journal/joined.py does; a property test holds the two against each other.

-- One row a candidate of an exposure.
CREATE OR REPLACE VIEW candidates AS
SELECT e.source, e.segment, e.place, e.request_id, c.ordinal - 1 AS candidate, c.pctr,
       e.candidate_ids[c.ordinal] AS candidate_id
FROM exposures e CROSS JOIN LATERAL unnest(e.pctr) WITH ORDINALITY AS c (pctr, ordinal);

-- Of two exposures with one request_id the first by its time counts.
CREATE OR REPLACE VIEW first_exposures AS
SELECT ranked.*, coalesce(w.seconds, 86400.0) AS window_seconds
FROM (
  SELECT e.*, row_number() OVER (PARTITION BY e.request_id ORDER BY e.time, e.source, e.segment, e.place) AS rank
  FROM exposures e
) ranked
LEFT JOIN windows w ON w.experiment = ranked.experiment
WHERE ranked.rank = 1;

-- One row an impression or click that was told, whatever becomes of it:
--   duplicate   one with its request, candidate, kind and event_id was read before
--   orphan      no exposure has its request_id
--   misplaced   the exposure has no such candidate, or no pctr for it
--   skewed      its time cannot be; `happened` is when it was received, then
--   late        it happened after the attribution window
CREATE OR REPLACE VIEW judged_events AS
SELECT timed.*, timed.is_placed AND timed.happened - timed.exposed > timed.window_seconds AS late
FROM (
  SELECT placed.*,
         placed.is_placed AND placed.is_skewed AS skewed,
         CASE WHEN placed.told IS NULL OR placed.is_skewed THEN placed.received ELSE placed.told END AS happened
  FROM (
    SELECT t.source, t.segment, t.place, t.request_id, t.candidate, t.event, t.event_id, t.received, t.time AS told,
           e.experiment, e.time AS exposed, e.window_seconds,
           t.rank > 1 AS duplicate,
           t.rank = 1 AND e.request_id IS NULL AS orphan,
           t.rank = 1 AND e.request_id IS NOT NULL AND c.pctr IS NULL AS misplaced,
           t.rank = 1 AND c.pctr IS NOT NULL AS is_placed,
           t.time IS NOT NULL AND (t.time > t.received + 60 OR t.time < e.time - 60) AS is_skewed
    FROM (
      SELECT v.*, row_number() OVER (
               PARTITION BY v.request_id, v.candidate, v.event, v.event_id ORDER BY v.source, v.segment, v.place
             ) AS rank
      FROM events v
      WHERE v.event IN ('impression', 'click')
    ) t
    LEFT JOIN first_exposures e ON e.request_id = t.request_id
    LEFT JOIN LATERAL (SELECT CASE WHEN t.candidate BETWEEN 0 AND 1000000 THEN e.pctr[t.candidate + 1] END AS pctr) c
      ON true
  ) placed
) timed;

-- The joined log: one row a candidate that was shown in time, one row without for an exposure of which none was. The
-- columns are those of a joined log in docs/answers.md.
CREATE OR REPLACE VIEW joined AS
SELECT e.source, e.segment, e.place, e.request_id, e.time, e.unit, e.experiment, e.phase, e.arm, e.served, e.enrolled,
       e.forced, e.fallback, e.latency_ms, e.propensity, e.model, e.version, e.context, e.rest,
       s.candidate,
       CASE WHEN e.pctr[s.candidate + 1] > 0 AND e.pctr[s.candidate + 1] < 1 THEN e.pctr[s.candidate + 1] END AS pctr,
       s.click_time IS NOT NULL AS click,
       s.click_time
FROM first_exposures e
LEFT JOIN (
  SELECT request_id, candidate, min(CASE WHEN event = 'click' THEN happened END) AS click_time
  FROM judged_events
  WHERE is_placed
  GROUP BY request_id, candidate
  HAVING NOT min(CASE WHEN late THEN 1 ELSE 0 END) = 1
) s ON s.request_id = e.request_id;

-- What was counted while joining, by experiment; NULL stands for what belongs to none. `log_other_experiments` of an
-- experiment is the sum of `exposures` over the other rows.
CREATE OR REPLACE VIEW counts AS
SELECT experiment, sum(exposures) AS exposures, sum(duplicate_exposures) AS duplicate_exposures, sum(events) AS events,
       sum(duplicate_events) AS duplicate_events, sum(orphan_events) AS orphan_events,
       sum(misplaced_events) AS misplaced_events, sum(skewed_events) AS skewed_events, sum(late_events) AS late_events,
       sum(other_events) AS other_events, sum(unreadable) AS unreadable, sum(torn) AS torn, sum(damaged) AS damaged,
       sum(lost_bytes) AS lost_bytes
FROM (
  SELECT experiment, count(*) AS exposures, 0 AS duplicate_exposures, 0 AS events, 0 AS duplicate_events,
         0 AS orphan_events, 0 AS misplaced_events, 0 AS skewed_events, 0 AS late_events, 0 AS other_events,
         0 AS unreadable, 0 AS torn, 0 AS damaged, 0 AS lost_bytes
  FROM first_exposures GROUP BY experiment
  UNION ALL
  SELECT NULL, 0, count(*) - count(DISTINCT request_id), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 FROM exposures
  UNION ALL
  SELECT NULL, 0, 0, count(*), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 FROM events WHERE event IN ('impression', 'click')
  UNION ALL
  SELECT experiment, 0, 0, 0, sum(CASE WHEN duplicate THEN 1 ELSE 0 END), sum(CASE WHEN orphan THEN 1 ELSE 0 END),
         sum(CASE WHEN misplaced THEN 1 ELSE 0 END), sum(CASE WHEN skewed THEN 1 ELSE 0 END),
         sum(CASE WHEN late THEN 1 ELSE 0 END), 0, 0, 0, 0, 0
  FROM judged_events GROUP BY experiment
  UNION ALL
  SELECT NULL, 0, 0, 0, 0, 0, 0, 0, 0, count(*), 0, 0, 0, 0 FROM events WHERE event NOT IN ('impression', 'click')
  UNION ALL
  SELECT NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, coalesce(sum(unreadable), 0), coalesce(sum(torn), 0),
         coalesce(sum(damaged), 0), coalesce(sum(lost_bytes), 0)
  FROM segments
) c
GROUP BY experiment;
