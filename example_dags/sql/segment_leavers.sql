-- Who was in a segment at the end of the month before, and is not in it later.
SELECT earlier.audience_id, earlier.customer_id
FROM cdnow_segments AS earlier
WHERE earlier.month = '{{ month_start(params.month, -1) }}'
    AND NOT EXISTS (
        SELECT 1
        FROM cdnow_segments AS later
        WHERE later.month = '{{ month_start(params.month) }}'
            AND later.audience_id = earlier.audience_id
            AND later.customer_id = earlier.customer_id
    )
ORDER BY earlier.customer_id
