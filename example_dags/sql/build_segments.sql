-- Recency, frequency and monetary value of each customer when the month ended, and the segment that follows from them.
-- month_start(month, n) is the first day of the n-th month after it.
DELETE FROM cdnow_segments WHERE month = '{{ month_start(params.month) }}';

INSERT INTO cdnow_segments (month, audience_id, customer_id)
SELECT '{{ month_start(params.month) }}', audience_id, customer_id
FROM (
    SELECT
        customer_id,
        CASE
            -- Five purchases and 150 dollars or more, the last one in these three months
            WHEN purchases >= 5 AND cents >= 15000 AND last_purchase >= '{{ month_start(params.month, -2) }}'
                THEN 'cdnow-champions'
            -- Three purchases and 75 dollars or more, but nothing for three months, and for nine at the most
            WHEN purchases >= 3 AND cents >= 7500 AND last_purchase < '{{ month_start(params.month, -2) }}'
                AND last_purchase >= '{{ month_start(params.month, -8) }}'
                THEN 'cdnow-at-risk'
            -- Nothing for a year
            WHEN last_purchase < '{{ month_start(params.month, -11) }}'
                THEN 'cdnow-lapsed'
        END AS audience_id
    FROM (
        SELECT customer_id, MAX(purchased_on) AS last_purchase, COUNT(*) AS purchases, SUM(cents) AS cents
        FROM cdnow_purchases
        WHERE purchased_on < '{{ month_start(params.month, 1) }}'
        GROUP BY customer_id
    ) AS customers
) AS segmented
WHERE audience_id IS NOT NULL;
