-- What is known of each customer when the month ended. The recency is a class, so that it changes when it means something.
-- Money and times are text here, because SQLite has no types for them; the task declares what they are.
SELECT
    customer_id,
    CASE
        WHEN MAX(purchased_on) >= '{{ month_start(params.month, -2) }}' THEN 'this quarter'
        WHEN MAX(purchased_on) >= '{{ month_start(params.month, -11) }}' THEN 'this year'
        ELSE 'over a year ago'
    END AS recency,
    COUNT(*) AS purchases,
    CAST(SUM(cents) / 100 AS VARCHAR(20)) || '.' || CAST(SUM(cents) / 10 % 10 AS VARCHAR(1))
        || CAST(SUM(cents) % 10 AS VARCHAR(1)) AS total_spent,
    MAX(purchased_on) || 'T00:00:00Z' AS last_purchase
FROM cdnow_purchases
WHERE purchased_on < '{{ month_start(params.month, 1) }}'
GROUP BY customer_id
