"""Who holds what: protocols that divide a source among clients."""
