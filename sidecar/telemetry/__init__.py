"""What exchanges leave behind: records, the access log, receipts and metrics. Pure: no I/O, no clock."""
