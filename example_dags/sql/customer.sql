-- One customer's purchases, and the last day that the warehouse knows of.
SELECT
    COUNT(*) AS purchases,
    SUM(cents) AS cents,
    MAX(purchased_on) AS last_purchase,
    (SELECT MAX(purchased_on) FROM cdnow_purchases) AS last_day
FROM cdnow_purchases
WHERE customer_id = '{{ params.customer_id }}'
