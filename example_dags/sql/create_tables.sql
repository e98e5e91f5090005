-- For SQLite and Postgres alike. Money is in whole cents, because SQLite has no exact decimals.
CREATE TABLE IF NOT EXISTS cdnow_purchases (
    purchase_id INTEGER PRIMARY KEY,
    customer_id VARCHAR(5) NOT NULL,
    purchased_on DATE NOT NULL,
    cds INTEGER NOT NULL,
    cents INTEGER NOT NULL
);

CREATE TABLE IF NOT EXISTS cdnow_segments (
    month DATE NOT NULL,
    audience_id VARCHAR(1000) NOT NULL,
    customer_id VARCHAR(5) NOT NULL,
    PRIMARY KEY (month, customer_id)
);
