-- Who is in a segment now, and what its audience is called.
SELECT
    customer_id,
    audience_id,
    CASE audience_id
        WHEN 'cdnow-champions' THEN 'CDNOW: champions'
        WHEN 'cdnow-at-risk' THEN 'CDNOW: at risk'
        WHEN 'cdnow-lapsed' THEN 'CDNOW: lapsed'
    END AS audience_name
FROM cdnow_segments
WHERE month = '{{ month_start(params.month) }}'
