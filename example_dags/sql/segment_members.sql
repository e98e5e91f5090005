-- Who is in a segment now.
SELECT audience_id, customer_id
FROM cdnow_segments
WHERE month = '{{ month_start(params.month) }}'
ORDER BY customer_id
