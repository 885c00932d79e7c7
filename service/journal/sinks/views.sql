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

-- What another arm's model said of an exposure's candidates: what was read first, where it is of the exposure that counts.
CREATE OR REPLACE VIEW first_shadows AS
SELECT ranked.*
FROM (
  SELECT s.*, row_number() OVER (PARTITION BY s.request_id ORDER BY s.source, s.segment, s.place) AS rank
  FROM shadows s
) ranked
JOIN first_exposures e ON e.request_id = ranked.request_id AND e.time = ranked.time
WHERE ranked.rank = 1;

-- The joined log: one row a candidate that was shown in time, one row without for an exposure of which none was, one row
-- with `error` for a request that was not answered. The columns are those of a joined log in docs/answers.md.
CREATE OR REPLACE VIEW joined AS
SELECT e.source, e.segment, e.place, e.request_id, e.time, e.unit, e.experiment, e.phase, e.arm, e.served, e.enrolled,
       e.forced, e.fallback, false AS error, e.latency_ms, e.propensity, e.model, e.version, e.context, e.rest,
       s.candidate,
       CASE WHEN e.pctr[s.candidate + 1] > 0 AND e.pctr[s.candidate + 1] < 1 THEN e.pctr[s.candidate + 1] END AS pctr,
       s.click_time IS NOT NULL AS click,
       s.click_time,
       CASE WHEN h.pctr[s.candidate + 1] > 0 AND h.pctr[s.candidate + 1] < 1 THEN h.arm END AS shadow_arm,
       CASE WHEN h.pctr[s.candidate + 1] > 0 AND h.pctr[s.candidate + 1] < 1 THEN h.pctr[s.candidate + 1] END
         AS shadow_pctr
FROM first_exposures e
LEFT JOIN (
  SELECT request_id, candidate, min(CASE WHEN event = 'click' THEN happened END) AS click_time
  FROM judged_events
  WHERE is_placed
  GROUP BY request_id, candidate
  HAVING min(CASE WHEN late THEN 1 ELSE 0 END) = 0
) s ON s.request_id = e.request_id
LEFT JOIN first_shadows h ON h.request_id = e.request_id
UNION ALL
SELECT f.source, f.segment, f.place, f.request_id, f.time, f.unit, f.experiment, f.phase, f.arm, f.served, f.enrolled,
       f.forced, NULL, true, f.latency_ms, NULL, NULL, NULL, NULL, f.rest, NULL, NULL, false, NULL, NULL, NULL
FROM failures f;

-- What was counted while joining, by experiment; NULL stands for what belongs to none. `log_other_experiments` of an
-- experiment is the sum of `exposures` over the other rows.
CREATE OR REPLACE VIEW counts AS
SELECT experiment,
       sum(CASE WHEN what = 'exposures' THEN number ELSE 0 END) AS exposures,
       sum(CASE WHEN what = 'duplicate_exposures' THEN number ELSE 0 END) AS duplicate_exposures,
       sum(CASE WHEN what = 'events' THEN number ELSE 0 END) AS events,
       sum(CASE WHEN what = 'duplicate_events' THEN number ELSE 0 END) AS duplicate_events,
       sum(CASE WHEN what = 'orphan_events' THEN number ELSE 0 END) AS orphan_events,
       sum(CASE WHEN what = 'misplaced_events' THEN number ELSE 0 END) AS misplaced_events,
       sum(CASE WHEN what = 'skewed_events' THEN number ELSE 0 END) AS skewed_events,
       sum(CASE WHEN what = 'late_events' THEN number ELSE 0 END) AS late_events,
       sum(CASE WHEN what = 'other_events' THEN number ELSE 0 END) AS other_events,
       sum(CASE WHEN what = 'failures' THEN number ELSE 0 END) AS failures,
       sum(CASE WHEN what = 'shadow_scores' THEN number ELSE 0 END) AS shadow_scores,
       sum(CASE WHEN what = 'unreadable' THEN number ELSE 0 END) AS unreadable,
       sum(CASE WHEN what = 'torn' THEN number ELSE 0 END) AS torn,
       sum(CASE WHEN what = 'damaged' THEN number ELSE 0 END) AS damaged,
       sum(CASE WHEN what = 'lost_bytes' THEN number ELSE 0 END) AS lost_bytes
FROM (
  SELECT experiment, 'exposures' AS what, count(*) AS number FROM first_exposures GROUP BY experiment
  UNION ALL SELECT NULL, 'duplicate_exposures', count(*) - count(DISTINCT request_id) FROM exposures
  UNION ALL SELECT NULL, 'events', count(*) FROM judged_events
  UNION ALL SELECT NULL, 'duplicate_events', count(*) FROM judged_events WHERE duplicate
  UNION ALL SELECT NULL, 'orphan_events', count(*) FROM judged_events WHERE orphan
  UNION ALL SELECT experiment, 'misplaced_events', count(*) FROM judged_events WHERE misplaced GROUP BY experiment
  UNION ALL SELECT experiment, 'skewed_events', count(*) FROM judged_events WHERE skewed GROUP BY experiment
  UNION ALL SELECT experiment, 'late_events', count(*) FROM judged_events WHERE late GROUP BY experiment
  UNION ALL SELECT NULL, 'other_events', count(*) FROM events WHERE event NOT IN ('impression', 'click')
  UNION ALL SELECT experiment, 'failures', count(*) FROM failures GROUP BY experiment
  UNION ALL SELECT e.experiment, 'shadow_scores', count(*)
    FROM first_shadows h JOIN first_exposures e ON e.request_id = h.request_id GROUP BY e.experiment
  UNION ALL SELECT NULL, 'unreadable', coalesce(sum(unreadable), 0) FROM segments
  UNION ALL SELECT NULL, 'torn', coalesce(sum(torn), 0) FROM segments
  UNION ALL SELECT NULL, 'damaged', coalesce(sum(damaged), 0) FROM segments
  UNION ALL SELECT NULL, 'lost_bytes', coalesce(sum(lost_bytes), 0) FROM segments
) c
GROUP BY experiment;
