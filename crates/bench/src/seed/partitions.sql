-- The monthly partitions from @from to @to, named and bounded as those that the product creates.
DO $$
DECLARE
    month timestamptz;
    parent text;
    partition text;
BEGIN
    FOR month IN SELECT generate_series(date_trunc('month', to_timestamp(@from / 1000000)),
                                        to_timestamp(@to / 1000000), '1 month') LOOP
        FOR parent IN
            SELECT c.relname FROM pg_partitioned_table p
            JOIN pg_class c ON c.oid = p.partrelid
            JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0]
            WHERE p.partstrat = 'r' AND a.atttypid = 'uuid'::regtype
              AND c.relnamespace = current_schema()::regnamespace
        LOOP
            partition := parent || to_char(month, '_YYYY_MM');
            IF to_regclass(partition) IS NULL THEN
                EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)', partition, parent,
                    rpad(lpad(to_hex((extract(epoch FROM month) * 1000)::bigint), 12, '0'), 32, '0'),
                    rpad(lpad(to_hex((extract(epoch FROM month + interval '1 month') * 1000)::bigint), 12, '0'),
                         32, '0'));
            END IF;
        END LOOP;
    END LOOP;
END $$;
