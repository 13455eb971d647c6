"""The app's revisions. Those of zart_sqla stay in its package."""
